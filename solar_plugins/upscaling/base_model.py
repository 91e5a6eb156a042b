"""The base model: find it on disk or on the hub, validate it, and fingerprint it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.logs import logger
from solar_plugins.solar_block import InitArgs
from solar_plugins.storage.cards import CARD
from solar_plugins.storage.safetensors import StoredTensor
from solar_plugins.storage.untrusted import read_json_object, require_file, require_inside
from solar_plugins.upscaling.companions import companions_in, judge, listed
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.hub import fetch, repository_files
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.quantization import SIDE_FILES
from solar_plugins.upscaling.tensor_names import layer_prefix_of, model_names
from solar_plugins.upscaling.weight_files import (
    ADAPTER_CONFIG,
    INDEX,
    StoredWeights,
    describe_other,
    has_weights,
    names_in,
    read_weights,
    refuse_adapter,
    refuse_ungathered,
)

CONFIG = "config.json"

LOG = logger("base")


def _is_shard(name: str) -> bool:
    """Whether a file of a repository may hold weights that transformers loads."""
    return "/" not in name and name.endswith(".safetensors") and not name.startswith("consolidated")


@dataclass(frozen=True)
class BaseCheckpoint:
    """A base model on this machine.

    Args:
        name: As the user wrote it: a directory or a hub id.
        directory: The directory with its config.json and all files that have been downloaded so far.
        config: The content of its config.json.
        revision: The commit of a hub model, else None.
        trusts_code: Whether the user trusts its custom modeling code, so that the code is copied.
        trusted_keys: Keys of its config that the user declared not to describe individual layers.
        donors: Other models from which a plan also takes layers: see `with_donors`.
    """

    name: str
    directory: Path
    config: Mapping[str, Any]
    revision: str | None = None
    trusts_code: bool = False
    trusted_keys: tuple[str, ...] = ()
    donors: tuple[BaseCheckpoint, ...] = ()

    def with_donors(self, plan: LayerPlan, init: InitArgs | None) -> tuple[BaseCheckpoint, LayerPlan]:
        """Find the donors of a plan. Returns this base and the plan, both with donors filled in.

        Args:
            plan: The plan.
            init: The ``solar.init`` it comes from; None for a recorded plan.

        Raises:
            SolarError: A donor cannot be found, or is not compatible with this base.
        """
        if not plan.donors:
            return self, plan
        from solar_plugins.upscaling.donors import with_donors  # Imported late: few plans have donors.

        code, keys = self.trusts_code, self.trusted_keys
        return with_donors(
            self, plan, init, lambda one: find_base(one.name, one.revision, trust_remote_code=code, trusted_keys=keys)
        )

    @property
    def models(self) -> tuple[BaseCheckpoint, ...]:
        """This base and its donors, indexed by `PlannedLayer.model`."""
        return (self, *self.donors)

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder that its config describes.

        Raises:
            CheckpointError: The architecture is not supported, or the config contradicts itself.
        """
        return Decoder.of(self.config, self.trusted_keys, self.side_files)

    @cached_property
    def side_files(self) -> dict[str, Any]:
        """The content of the quantization configs next to config.json, by file name.

        Raises:
            CheckpointError: One is not a JSON object, or a link out of the directory.
        """
        paths = [path for name in SIDE_FILES if (path := self.directory / name).is_file()]
        for path in paths:
            require_inside(path, self.directory)
        return {path.name: read_json_object(path) for path in paths}

    @property
    def num_layers(self) -> int:
        """The number of its decoder layers."""
        return self.decoder.num_layers

    @property
    def public_name(self) -> str:
        """A name without private paths: a hub id, or the last part of a local path."""
        return self.name if self.revision else self.directory.resolve().name

    @property
    def place(self) -> tuple[str, str | None]:
        """Its location, with the revision of a hub model. Two names of one model have the same place."""
        return (self.name, self.revision) if self.revision else (str(self.directory.resolve()), None)

    @cached_property
    def fetched(self) -> Path:
        """The directory with all files that are used. Downloads the missing ones from the hub."""
        if self.revision is None or self._listed is None:
            return self.directory
        used = {CONFIG, CARD, INDEX, *judge(self._listed, code=self.trusts_code).kept}
        return fetch(self.name, self.revision, used | set(filter(_is_shard, self._listed)))

    @property
    def hub_was_asked(self) -> bool:
        """Whether the list of its files is known. That of a hub model is not while offline."""
        return self.revision is None or self._listed is not None

    @property
    def companions_on_hub(self) -> frozenset[str]:
        """The relative paths of a hub model's companions, without downloading them; empty if the hub is offline."""
        return frozenset(judge(self._listed or {}, code=self.trusts_code).kept)

    @cached_property
    def _listed(self) -> Mapping[str, int | None] | None:
        """The files in a hub model's repository; None if the hub cannot be reached."""
        return repository_files(self.name, self.revision) if self.revision else None

    @property
    def companions(self) -> list[Path]:
        """The files other than weights that the upscaled model inherits: see `companions.py`."""
        return self._companions_in(self.fetched)

    @property
    def companions_here(self) -> list[Path]:
        """As `companions`, but only those already on disk: an offline hub cache may be incomplete."""
        return self._companions_in(self.directory)

    def _companions_in(self, directory: Path) -> list[Path]:
        return [directory / name for name in companions_in(directory, code=self.trusts_code).kept]

    def relative(self, path: Path) -> str:
        """The path of one of its files relative to its directory, with slashes."""
        return path.relative_to(self.directory).as_posix()

    def notes_on_companions(self) -> Iterator[tuple[int, str]]:
        """Log lines, with their level, about files that are not copied or may be missing."""
        judged = companions_in(self.fetched, code=self.trusts_code)
        not_fetched = judge(self._listed or {}, code=self.trusts_code).left
        used = {INDEX, *map(self.relative, self.files)}
        left = {name: why for name, why in {**not_fetched, **judged.left}.items() if name not in used}
        yield from judged._replace(left=left).notes()
        if not self.hub_was_asked:
            yield (
                logging.WARNING,
                f"the hub is offline, so of the files of {self.name} other than weights, only those in the hub cache "
                f"were copied: {listed(list(judged.kept)) or 'none'}. If you need more (tokenizer, processor, "
                f"license), run again online, or after `hf download {self.name} --revision {self.revision}`",
            )

    @cached_property
    def weights(self) -> StoredWeights:
        """Its tensors under their stored names. Reads only the headers.

        Raises:
            CheckpointError: There are no weights that transformers would load, a file is damaged, or different readers
                would load different weights.
        """
        repository = (self.name, self._listed) if self._listed else None
        return read_weights(self.fetched, self.config.get("transformers_weights"), repository)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Its tensors under the names of the transformers model. Logs how stored names were changed.

        Raises:
            CheckpointError: As `weights`, or the names do not match the model.
        """
        weights = self.weights
        try:
            names = model_names(weights.tensors, self.decoder, unlisted=weights.unlisted, absent=weights.absent)
        except CheckpointError as error:
            raise CheckpointError(f"{self.directory}: {error}") from None
        for note in names.notes:
            LOG.info("%s: %s", self.name, note)
        tensors = {name: weights.tensors[stored] for name, stored in names.stored.items()}
        has_layers = any(layer_prefix_of(name, self.decoder) for name in tensors)
        refuse_ungathered(self.directory, tensors, has_layers=has_layers)
        return tensors

    @property
    def tensors_here(self) -> dict[str, StoredTensor] | None:
        """As `tensors`, without downloading; None if any are missing.

        Raises:
            CheckpointError: They are in a local directory and damaged.
        """
        if not has_weights(self.directory):
            return None
        try:
            return replace(self, revision=None).tensors
        except CheckpointError:
            if self.revision:
                return None
            raise

    @property
    def files(self) -> list[Path]:
        """All files that the upscaled model is created from.

        Raises:
            CheckpointError: One is a link out of the directory, a git-lfs pointer, or not a regular file.
        """
        shards = {tensor.file for tensor in self.weights.tensors.values()}
        files = sorted(shards | {self.directory / CONFIG, *self.companions})
        for path in files:
            require_inside(path, self.directory)
            require_file(path)
        return files

    def state(self) -> dict[Path, tuple[int, ...]]:
        """File metadata that changes when a file is written or replaced. Cheap: no content is read."""
        status = {path: path.stat() for model in self.models for path in model.files}
        return {path: (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in status.items()}

    @cached_property
    def identity(self) -> str:
        """The `fingerprint`, computed once."""
        return self.fingerprint()

    def fingerprint(self) -> str:
        """Identifies this base with its donors.

        For a hub model, the commit; nothing has to be downloaded. For a directory, a hash of the name, size,
        modification time and samples of every file that is used; archives and build tools set all times alike.
        """
        return " + ".join(model._own_fingerprint() for model in self.models)

    def _own_fingerprint(self) -> str:
        if self.revision:
            return f"hub:{self.name}@{self.revision}"
        import hashlib  # Imported late: OpenSSL takes longer to load than a plan takes to compute.

        digest = hashlib.sha256()
        for path in self.files:
            status = path.stat()
            digest.update(f"{self.relative(path)}\0{status.st_size}\n{status.st_mtime_ns}\n".encode())
            digest.update(_sample(path, status.st_size))
        return f"directory:{digest.hexdigest()}"


@dataclass(frozen=True)
class FoundConfig:
    """A base of which only the config.json is needed.

    Args:
        name: As the user wrote it: a directory, a config.json or a hub id.
        revision: As the user wrote it.
        config: The content of its config.json.
        folder: The base itself, if it is a local directory.
        trusted_keys: As for `BaseCheckpoint`; ``folder`` has its own.
        trusts_code: As for `BaseCheckpoint`.
        donors: As for `BaseCheckpoint`.
    """

    name: str
    revision: str | None
    config: Mapping[str, Any]
    folder: BaseCheckpoint | None = None
    trusted_keys: tuple[str, ...] = ()
    trusts_code: bool = False
    donors: tuple[FoundConfig, ...] = ()

    def with_donors(self, plan: LayerPlan, init: InitArgs | None) -> tuple[FoundConfig, LayerPlan]:
        """As `BaseCheckpoint.with_donors`. If a donor is not a local directory, the result has no ``folder``."""
        if not plan.donors:
            return self, plan
        from solar_plugins.upscaling.donors import with_donors  # Imported late: few plans have donors.

        code, keys = self.trusts_code, self.trusted_keys
        found, plan = with_donors(
            self, plan, init, lambda one: find_config(one.name, one.revision, trust_remote_code=code, trusted_keys=keys)
        )
        folders = tuple(donor.folder for donor in found.donors if donor.folder)
        if found.folder is None or len(folders) < len(found.donors):
            return replace(found, folder=None), plan
        return replace(found, folder=replace(found.folder, donors=folders)), plan

    @property
    def checkpoint(self) -> BaseCheckpoint | None:
        """``folder``, if it holds weights. The output directory of a running job may have a config only."""
        return self.folder if self.folder and all(has_weights(one.directory) for one in self.folder.models) else None

    @property
    def public_name(self) -> str:
        """As `BaseCheckpoint.public_name`."""
        path = Path(os.path.expanduser(self.name))
        if path.is_file():
            return path.resolve().parent.name
        return self.folder.public_name if self.folder else self.name

    @property
    def place(self) -> tuple[str, str | None]:
        """As `BaseCheckpoint.place`."""
        path = Path(os.path.expanduser(self.name))
        if path.is_file():
            return str(path.resolve().parent), None
        return self.folder.place if self.folder else (self.name, self.revision)

    @cached_property
    def decoder(self) -> Decoder:
        """As `BaseCheckpoint.decoder`."""
        return self.folder.decoder if self.folder else Decoder.of(self.config, self.trusted_keys)


SAMPLE_BYTES = 65_536


def _sample(path: Path, num_bytes: int) -> bytes:
    """The start, the middle and the end of a file."""
    with path.open("rb") as file:
        parts = []
        for position in (0, num_bytes // 2, max(0, num_bytes - SAMPLE_BYTES)):
            file.seek(position)
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)


def find_base(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False, trusted_keys: tuple[str, ...] = ()
) -> BaseCheckpoint:
    """Find the base called ``name``: a directory, or a model on the hub or in its offline cache.

    Of a hub model only the config is downloaded, which is enough to find an existing upscaled checkpoint.

    Args:
        name: A directory or a hub id.
        revision: Of a hub id.
        trust_remote_code: Accept a base with custom modeling code. The code is copied, not run.
        trusted_keys: Keys of its config that the user declared not to describe individual layers.

    Raises:
        CheckpointError: It cannot be found or downloaded, is not a model in safetensors format, or has custom code that
            is not trusted.
    """
    directory = Path(os.path.expanduser(name)).absolute()
    if name and directory.is_dir():
        refuse_adapter(directory, name)
        config = _trusted(read_config(directory / CONFIG), trust_remote_code)
        return BaseCheckpoint(name, directory, config, trusts_code=trust_remote_code, trusted_keys=trusted_keys)
    _refuse_missing_path(name)
    directory = fetch(name, revision, [CONFIG, ADAPTER_CONFIG, *SIDE_FILES])
    refuse_adapter(directory, name)
    config = _trusted(read_config(directory / CONFIG), trust_remote_code)
    return BaseCheckpoint(name, directory, config, directory.name, trust_remote_code, trusted_keys)


def _trusted(config: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    if config.get("auto_map") and not trust_remote_code:
        raise CheckpointError(
            "config.json: auto_map refers to custom code in the checkpoint. Read the code; if you trust it, set "
            "trust_remote_code: true in the recipe (--trust-remote-code on the command line). If transformers itself "
            "supports the model_type, it is safer to remove auto_map"
        )
    return config


def find_config(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False, trusted_keys: tuple[str, ...] = ()
) -> FoundConfig:
    """Find the config of a base, and the base itself if it is a local directory. Downloads at most config.json.

    Args:
        name: A directory, a config.json, or a hub id.
        revision: Of a hub id.
        trust_remote_code: As for `find_base`.
        trusted_keys: As for `find_base`.

    Raises:
        CheckpointError: The config cannot be found, downloaded or read.
    """
    path = Path(os.path.expanduser(name))
    if path.is_file():
        if path.suffix != ".json":
            raise CheckpointError(_file_for_folder(path))
        config = _trusted(read_config(path), trust_remote_code)
        return FoundConfig(name, revision, config, None, trusted_keys, trust_remote_code)
    if path.is_dir():
        base = find_base(name, trust_remote_code=trust_remote_code, trusted_keys=trusted_keys)
        return FoundConfig(name, revision, base.config, base, trusted_keys, trust_remote_code)
    _refuse_missing_path(name)
    config = _trusted(read_config(fetch(name, revision, [CONFIG]) / CONFIG), trust_remote_code)
    return FoundConfig(name, revision, config, None, trusted_keys, trust_remote_code)


def read_config(path: Path) -> dict[str, Any]:
    """Read a model's config.json.

    Raises:
        CheckpointError: It is missing or not a JSON object.
    """
    if not path.exists():
        other = describe_other(str(path.parent), names_in(path.parent))
        raise CheckpointError(
            f"{path}: missing; a base model has a config.json next to its weights{f'. {other}' if other else ''}"
        )
    return read_json_object(path)


def _refuse_missing_path(name: str) -> None:
    path = Path(os.path.expanduser(name))
    if name and path.is_file():
        raise CheckpointError(_file_for_folder(path))
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_local:
        raise CheckpointError(
            f"base_model: {name!r} is neither a local directory (seen from {Path.cwd()}) nor a hub id such as "
            "mistralai/Mistral-7B-v0.1; give the path of a model directory, or create it first (a recipe's header "
            "says which stage comes before it)"
        )


def _file_for_folder(path: Path) -> str:
    return (
        f"base_model: {path} is a file; expected a model directory with config.json, weights and tokenizer, such as "
        f"{path.absolute().parent} (for solar plan a config.json is enough)"
    )
