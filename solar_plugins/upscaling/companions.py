"""Which files other than weights an upscaled model inherits from its base: all except those listed here.

A list of files to copy would silently lose what it does not know: a processor's config, the vocabulary of a rare
tokenizer, a license. So this is a list of files not to copy, with the reasons. Pure, except for `walk`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from solar_plugins.storage.untrusted import is_plain_relative_path, leads_out
from solar_plugins.text import printable

MAX_BYTES = 100_000_000
"""The largest known tokenizer.json has 35 MB."""

MAX_NAMED = 5
"""Maximum number of files that a message names."""


class Reason(Enum):
    """Why a file is not copied: the text for the log, and whether the upscaled model may need the file."""

    REMADE = "generated for the upscaled model", False
    HIDDEN = "hidden", False
    LEFTOVER = "left over from training", False
    WEIGHTS = "weights in another format", False
    BESIDE_WEIGHTS = "in a directory with its own weights", True
    MODULE = "a module's weights in another format; sentence-transformers can save them as safetensors", True
    PICKLE = "a pickle, which can run code when it is loaded", False
    CODE = "code, which is copied only with trust_remote_code: true (--trust-remote-code)", True
    LARGE = f"larger than {MAX_BYTES // 1_000_000} MB", True
    LINK = "a link out of the directory, to a directory, or to nothing", True
    SPECIAL = "not a regular file, or a directory without read permission", True
    NAME = "an unsafe file name", True

    @property
    def text(self) -> str:
        """For the log."""
        return self.value[0]

    @property
    def may_be_missed(self) -> bool:
        """Whether to warn."""
        return self.value[1]


REMADE = ("config.json", "readme.md", "solar_plan.json")
"""At the top level, in lower case: a repository has one README.md, and some file systems ignore case."""

LEFTOVER_FOLDERS = (
    *("checkpoint-*", "checkpoint_*", "global_step*", "pytorch_model_fsdp*", "optimizer*"),
    *("runs", "wandb", "mlruns", "logs", "tensorboard", "lightning_logs", "last_run_prepared", "__pycache__"),
)
LEFTOVER_FILES = (
    *("optimizer*", "scheduler.*", "scaler.*", "rng_state*", "random_states*", "training_args.*", "trainer_state.json"),
    *("trainer_log.jsonl", "all_results.json", "train_results.json", "eval_results.json"),
    *("events.out.tfevents.*", "*.log", "latest", "zero_to_fp32.py", "*.pyc"),
)

WEIGHT_FOLDERS = ("original", "onnx", "openvino", "coreml", "metal", "gguf")
WEIGHT_FILES = (
    *("*.safetensors", "*.index.json", "*.index.*.json", "adapter_*", "consolidated.*", "consolidated-*"),
    # The native config of Meta's and Mistral's weights, with the old depth.
    "params.json",
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.distcp", "*.h5", "*.keras", "*.hdf5", "*.msgpack", "*.ot", "*.nemo"),
    *("*.gguf", "*.ggml", "*.llamafile", "*.dduf", "*.onnx", "*.onnx_data", "*.onnx.data", "*.tflite", "*.litertlm"),
    *("*.task", "*.pb", "*.engine", "*.mlmodel", "*.mlpackage", "*.mlmodelc", "*.pdparams", "*.pdiparams", "*.imatrix"),
)
"""Weights of this model in another format, of its adapters, or of a part of it. None of them follows the plan."""

PICKLES = ("*.pkl", "*.pickle", "*.joblib", "*.dill", "*.cloudpickle")

MODULES = "modules.json"
"""A model with this file at its top level is one of sentence-transformers. Directories such as ``2_Dense`` are modules
that process the model's output."""
MODULE_FOLDER = re.compile(r"\d+_\w+")

CODE = ("*.py", "*.so", "*.so.*", "*.pyd", "*.dll", "*.dylib")

READ_BY_NAME = (
    *("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*"),
    *("*.model", "*.tiktoken", "tekken.json", "*.jinja"),
)
"""Files of configs and tokenizers. Without one of these the model would change, so a link out of the directory in its
place is an error, instead of being left out."""


class Companions(NamedTuple):
    """The files of a directory or repository, sorted into copied and not copied. Paths are relative, with slashes."""

    kept: tuple[str, ...]
    left: Mapping[str, Reason]
    """Also directories that were skipped."""

    def notes(self) -> Iterator[tuple[int, str]]:
        """What is not copied and why: a line for each reason, with its log level."""
        for reason in Reason:
            names = sorted(name for name, why in self.left.items() if why is reason)
            if names and reason is not Reason.REMADE:
                level = logging.WARNING if reason.may_be_missed else logging.INFO
                yield level, f"not copied ({reason.text}): {listed(names)}"


def judge(sizes: Mapping[str, int | None], *, code: bool) -> Companions:
    """Which of these files an upscaled model inherits.

    Args:
        sizes: The size in bytes of each file of a directory or repository, by relative path; None if unknown.
        code: Whether the user trusts the model's custom code.

    Example:
        >>> judge({"spiece.model": 9, "onnx/model.onnx": 9, "a/b.jinja": 9, "x.py": 9}, code=False).kept
        ('a/b.jinja', 'spiece.model')
    """
    rules = partial(_reason, code=code, modules=MODULES in sizes)
    left = {name: reason for name, size in sizes.items() if (reason := rules(name, size))}
    own = {PurePosixPath(name).parent for name, reason in left.items() if reason is Reason.WEIGHTS}
    own.discard(PurePosixPath())
    beside = {name: Reason.BESIDE_WEIGHTS for name in sizes if own.intersection(PurePosixPath(name).parents)}
    left = beside | left
    return Companions(tuple(sorted(sizes.keys() - left.keys())), left)


def companions_in(directory: Path, *, code: bool) -> Companions:
    """`judge` for a local directory; links and special files are not copied either."""
    sizes, left = walk(directory)
    judged = judge(sizes, code=code)
    return Companions(judged.kept, {**judged.left, **left})


def walk(directory: Path) -> tuple[dict[str, int | None], dict[str, Reason]]:
    """The sizes of all files below a directory; and everything that is not a file or is in a skipped directory.

    Links to directories are not followed. A link out of the directory counts as a file if its name is one of
    `READ_BY_NAME`; `storage.untrusted.require_inside` refuses it before it is opened.
    """
    sizes: dict[str, int | None] = {}
    left: dict[str, Reason] = {}

    def unreadable(error: OSError) -> None:
        if not isinstance(error, PermissionError) or Path(error.filename) == directory:
            raise error
        left[Path(error.filename).relative_to(directory).as_posix() + "/"] = Reason.SPECIAL

    for folder, subfolders, names in os.walk(directory, onerror=unreadable):
        here = Path(folder).relative_to(directory)
        for name in [*subfolders]:
            reason = Reason.LINK if Path(folder, name).is_symlink() else _reason_of_folder(name)
            if reason:
                subfolders.remove(name)
                left[(here / name).as_posix() + "/"] = reason
        for name in names:
            path, relative = Path(folder, name), (here / name).as_posix()
            if not path.is_file():
                left[relative] = Reason.LINK if path.is_symlink() else Reason.SPECIAL
            elif path.is_symlink() and leads_out(path, directory) and not _matches(name.lower(), READ_BY_NAME):
                left[relative] = Reason.LINK
            else:
                sizes[relative] = path.stat().st_size
    return sizes, left


def _reason(path: str, num_bytes: int | None, *, code: bool, modules: bool) -> Reason | None:
    *folders, name = path.split("/")
    if reason := next(filter(None, map(_reason_of_folder, folders)), None):
        return reason
    lower = name.lower()
    is_code = _matches(lower, CODE)
    is_weights = _matches(lower, WEIGHT_FILES) and not is_code
    in_module = modules and len(folders) == 1 and MODULE_FOLDER.fullmatch(folders[0])
    rules = (
        (Reason.REMADE, not folders and lower in REMADE),
        (Reason.HIDDEN, name.startswith(".")),
        (Reason.NAME, not is_plain_relative_path(path)),
        # A model's custom code may be called optimizer_x.py or adapter_x.py.
        (Reason.LEFTOVER, _matches(lower, LEFTOVER_FILES) and not (is_code and lower not in LEFTOVER_FILES)),
        (Reason.MODULE, is_weights and in_module and lower != "model.safetensors"),
        (Reason.WEIGHTS, is_weights and not in_module),
        (Reason.PICKLE, _matches(lower, PICKLES)),
        (Reason.CODE, is_code and not code),
        (Reason.LARGE, (num_bytes or 0) > MAX_BYTES),
    )
    return next((reason for reason, applies in rules if applies), None)


def _reason_of_folder(name: str) -> Reason | None:
    lower = name.lower()
    if name.startswith("."):
        return Reason.HIDDEN
    if _matches(lower, LEFTOVER_FOLDERS):
        return Reason.LEFTOVER
    return Reason.WEIGHTS if _matches(lower, WEIGHT_FOLDERS) else None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(names: list[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(printable(f"{name:.200}") for name in names[:MAX_NAMED]) + more
