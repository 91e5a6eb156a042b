"""Turns texts into embeddings: with a sentence-embedding model on this machine, or with an endpoint.

A text that is longer than the model's window is split, so that nothing is cut off; each piece has its own embedding.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from solar_plugins.data.mixture_args import EmbeddingArgs, SimilarArgs
from solar_plugins.errors import DataError
from solar_plugins.extras import require
from solar_plugins.logs import logger
from solar_plugins.storage.content import content_hashes
from solar_plugins.storage.untrusted import read_json_object

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOG = logger("mixture")
KEY = "decontaminate.similar"
MAX_WINDOW = 512
"""Tokens. Longer windows are possible with some models, but a question in a long text hardly changes its embedding."""
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json")
POOLINGS = ("mean", "cls", "lasttoken", "max")


class Embedded(NamedTuple):
    """Embeddings of length 1, float32, a row for each piece; and for each piece the index of its text."""

    vectors: NDArray[np.float32]
    owners: list[int]


class Embedder(Protocol):
    """Embeds texts."""

    def embed(self, texts: Sequence[str]) -> Embedded:
        """The embeddings of all pieces of the texts, in order."""


def model_identity(args: SimilarArgs) -> dict[str, Any]:
    """What identifies the model in a report: its name and a hash of its files, or the endpoint and the model's name.

    Raises:
        SolarError: The model cannot be found, or a package is missing.
    """
    if args.endpoint is not None:
        return {"base_url": args.endpoint.base_url, "model": args.endpoint.model}
    assert args.model is not None
    folder = find_model(args.model)
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()})
    hashes = content_hashes(map(str, files))
    listed = [[str(file.relative_to(folder)), hashes[str(file)]] for file in files]
    return {"model": args.model, "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def find_model(name: str) -> Path:
    """The folder of a model: a local folder, the folder in an installed package, or the one in the hub's cache.

    Raises:
        DataError: There is none, or it has no safetensors weights.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _of_package(name) or _of_hub(name)
    lacks = [what for what in ("config.json", "tokenizer.json", "*.safetensors") if not any(folder.glob(what))]
    if lacks:
        raise DataError(
            f"{KEY}.model: {folder} has no {', '.join(lacks)}; expected the folder of a sentence-embedding model with "
            "config.json, tokenizer.json and safetensors weights. Download the entire model, or name another one"
        )
    return folder


def _of_package(name: str) -> Path | None:
    try:
        files = distribution(name).files or []
    except (PackageNotFoundError, ValueError):
        return None
    folders = {Path(str(file.locate())).parent for file in files if file.suffix == ".safetensors"}
    if len(folders) != 1:
        raise DataError(
            f"{KEY}.model: the installed package {name} has safetensors weights in {len(folders)} folders; expected "
            "one. Name the model's folder instead"
        )
    return folders.pop()


def _of_hub(name: str) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    try:
        patterns = [pattern.removeprefix("*/") for pattern in MODEL_FILES] + ["*_Pooling/config.json"]
        offline = constants.HF_HUB_OFFLINE
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
    except (
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
        errors.HfHubHTTPError,
        errors.HTTPError,  # type: ignore[attr-defined]  # the transport's own, as in upscaling/hub.py
        OSError,
    ) as error:
        raise DataError(
            f"{KEY}.model: {name!r} is not a local folder, not an installed package, and cannot be downloaded from the "
            f"hub ({type(error).__name__}: {' '.join(str(error).split())[:200]}). Expected a sentence-embedding model; "
            "check the spelling and the network (HF_HUB_OFFLINE=1 allows cached models only), or give a local folder"
        ) from None


class LocalEmbedder:
    """A sentence-embedding model that transformers loads, in float32, on a GPU if there is one.

    Args:
        name: As in the mixture file.
        batch: Pieces that are embedded at once.

    Raises:
        SolarError: The model cannot be loaded or is not a sentence-embedding model, or a package is missing.
    """

    def __init__(self, name: str, batch: int) -> None:
        require(KEY)
        import torch
        from transformers import AutoTokenizer

        folder = find_model(name)
        self._name, self._batch = name, batch
        self._pooling, window = _modules(folder)
        self._model = _loaded(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises anything on a damaged file.
            raise _unusable(folder, error) from None
        self._tokenizer.padding_side = "right"
        limits = (window, self._tokenizer.model_max_length, _positions(self._model.config), MAX_WINDOW)
        self.window = min(limit for limit in limits if limit)
        """Tokens of a piece."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device).eval()

    def embed(self, texts: Sequence[str]) -> Embedded:
        """The embeddings. The pieces of a long text overlap by a quarter of a window."""
        import numpy as np

        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.window,
            stride=self.window // 4,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        pieces, owners = encoded["input_ids"], list(encoded["overflow_to_sample_mapping"])
        order = sorted(range(len(pieces)), key=lambda at: (len(pieces[at]), pieces[at]))
        parts = [
            self._embed([pieces[at] for at in order[start : start + self._batch]])
            for start in range(0, len(order), self._batch)
        ]
        vectors = np.empty((len(pieces), parts[0].shape[1]), np.float32)
        vectors[order] = np.concatenate(parts)
        return Embedded(_unit(vectors, owners, texts, f"{KEY}.model: {self._name}"), owners)

    def _embed(self, pieces: list[list[int]]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            batch = self._tokenizer.pad({"input_ids": pieces}, return_tensors="pt").to(self._device)
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            if self._pooling == "cls":
                pooled = hidden[:, 0]
            elif self._pooling == "lasttoken":
                pooled = hidden[torch.arange(len(pieces)), mask[..., 0].sum(1) - 1]
            elif self._pooling == "max":
                pooled = hidden.masked_fill(mask == 0, -torch.inf).amax(1)
            else:
                pooled = (hidden * mask).sum(1) / mask.sum(1)
            found: NDArray[np.float32] = pooled.float().cpu().numpy()
            return found


def _positions(config: Any) -> int | None:
    """The tokens that a model can read."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa's positions start after the padding token's.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "mpnet", "camembert") else 0
    return positions - offset if positions else None


def _modules(folder: Path) -> tuple[str, int | None]:
    """The pooling, and the window in tokens if it is given, from the files of sentence-transformers.

    Raises:
        DataError: The model is not one for sentence embeddings, or has modules that are not supported.
    """
    fix = "Name a sentence-embedding model, or serve this one and set endpoint: instead of model:"
    config = read_json_object(folder / "config.json", error=DataError, fix=fix)
    modules = folder / "modules.json"
    if not modules.is_file():
        architecture = str(next(iter(config.get("architectures") or []), "unknown"))
        if not architecture.endswith("Model") or config.get("is_encoder_decoder"):
            raise DataError(
                f"{KEY}.model: {folder} is a model of the architecture {architecture} without modules.json; expected a "
                f"sentence-embedding model. {fix}"
            )
        LOG.info("%s has no modules.json, which names the pooling; using the mean over its tokens", folder)
        return "mean", None
    try:
        found = {one["type"].rpartition(".")[2]: one["path"] for one in json.loads(modules.read_bytes())}
        if extra := found.keys() - {"Transformer", "Pooling", "Normalize"}:
            raise ValueError(f"the module {', '.join(sorted(extra))} is not supported")
        pooling = json.loads((folder / found["Pooling"] / "config.json").read_bytes())
        modes = [name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for name in pooling
                 if name.startswith("pooling_mode_") and pooling[name]]  # fmt: skip
        modes = modes or [pooling["pooling_mode"]]
        if len(modes) != 1 or modes[0] not in POOLINGS:
            raise ValueError(f"the pooling {' + '.join(map(str, modes))} is not supported")
        if found.get("Transformer"):
            raise ValueError(f"the weights are expected next to modules.json, not in {found['Transformer']}")
        window = folder / "sentence_bert_config.json"
        length = json.loads(window.read_bytes()).get("max_seq_length") if window.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{KEY}.model: {folder}: {error!s:.200}; expected modules.json of sentence-transformers with Transformer, "
            f"Pooling ({', '.join(POOLINGS)}) and perhaps Normalize. {fix}"
        ) from None
    return modes[0], length


def _loaded(folder: Path) -> Any:
    import torch
    from transformers import AutoModel
    from transformers.utils import logging as library_logging

    logging: Any = library_logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers raises anything on a damaged file.
        raise _unusable(folder, error) from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise DataError(
            f"{KEY}.model: {folder}: the weights lack {len(missing)} parameters ({', '.join(missing[:2])} ...); "
            "expected all of them. Download the entire model, or name another one"
        )
    return model


def _unusable(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"{KEY}.model: {folder} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
        "expected a sentence-embedding model that transformers can load without custom code. Name another one, or "
        "serve this one and set endpoint: instead of model:"
    )


class EndpointEmbedder:
    """An endpoint with embeddings.

    Args:
        args: How to reach it.
        batch: Texts in a request.
        runner: Runs the requests.
    """

    def __init__(self, args: EmbeddingArgs, batch: int, runner: asyncio.Runner) -> None:
        from solar_plugins.endpoints.client import Endpoint, key_from_environment

        self._args, self._batch, self._runner = args, batch, runner
        self._where = f"{KEY}.endpoint"
        self._endpoint = Endpoint(
            args,
            key_from_environment(args, self._where),
            {},
            where=self._where,
            advice="Nothing was written. Check the server; where it limits a request, lower batch, or endpoint.window "
            "(characters). Then run the command again",
        )
        self._dimension: int | None = None

    def embed(self, texts: Sequence[str]) -> Embedded:
        """The embeddings. A long text is split at white space into pieces of at most ``window`` characters."""
        import numpy as np

        pieces, owners = list[str](), list[int]()
        for number, text in enumerate(texts):
            for piece in split(text, self._args.window):
                pieces.append(piece)
                owners.append(number)
        found = self._runner.run(self._embed_all(pieces))
        if wrong := {len(vector) for vector in found} - {self._dimension or len(found[0])}:
            raise DataError(
                f"{self._where}: {', '.join(self._args.base_url)}: an embedding has {wrong.pop()} numbers, others have "
                f"{self._dimension or len(found[0])}; expected the same number for every text. Check the server"
            )
        self._dimension = len(found[0])
        return Embedded(_unit(np.array(found, np.float32), owners, texts, self._where), owners)

    async def _embed_all(self, pieces: list[str]) -> list[list[float]]:
        slots = asyncio.Semaphore(self._args.concurrency)

        async def embed(batch: list[str]) -> list[list[float]]:
            async with slots:
                return await self._endpoint.embed(batch)

        async with asyncio.TaskGroup() as group:
            starts = range(0, len(pieces), self._batch)
            tasks = [group.create_task(embed(pieces[start : start + self._batch])) for start in starts]
        return [vector for task in tasks for vector in task.result()]

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def split(text: str, size: int) -> Iterator[str]:
    """Pieces of at most ``size`` characters, split at white space where there is some.

    >>> list(split("one two three", 8))
    ['one two', 'three']
    """
    text = text.strip()
    while len(text) > size:
        end = max((at for at in range(size, size // 2, -1) if text[at].isspace()), default=size)
        yield text[:end].rstrip()
        text = text[end:].lstrip()
    yield text


def _unit(vectors: NDArray[np.float32], owners: Sequence[int], texts: Sequence[str], where: str) -> NDArray[np.float32]:
    """The vectors scaled to length 1.

    Raises:
        DataError: One is not finite, or zero.
    """
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = ~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0))
    if wrong.any():
        text = texts[owners[int(wrong.argmax())]]
        raise DataError(
            f"{where}: the embedding of {text!r:.80} is {'zero' if not lengths[wrong.argmax()] else 'not a number'}; "
            "expected finite numbers. The weights are damaged or the model is no sentence-embedding model; use another"
        )
    return np.asarray(vectors / lengths, np.float32)
