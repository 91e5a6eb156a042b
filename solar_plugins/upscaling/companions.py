"""Which files beside the weights an upscaled model takes over from its base: everything but what is named here.

A list of what to copy would lose, in silence, whatever it does not know: a processor's config, the vocabulary of a rare
tokenizer, a licence. So the list names what stays behind, and why. Pure, but for `walk`.
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
"""The largest tokenizer.json that is known has 35 MB."""

MAX_NAMED = 5
"""Files that a log line names for each reason."""


class Reason(Enum):
    """Why a file stays behind: in words, and whether somebody may miss it in the upscaled model."""

    REMADE = "written anew for the upscaled model", False
    HIDDEN = "hidden", False
    LEFTOVER = "left over from training", False
    WEIGHTS = "weights in another form", False
    BESIDE_WEIGHTS = "in a folder with weights of its own", True
    MODULE = "a module's weights in another form; sentence-transformers can save them as safetensors", True
    PICKLE = "a pickle, which can run code when it is read", False
    CODE = "code, which is copied with trust_remote_code: true (--trust-remote-code) only", True
    LARGE = f"larger than {MAX_BYTES // 1_000_000} MB", True
    LINK = "a link that leads out of the folder, to a folder, or nowhere", True
    SPECIAL = "no regular file, or a folder that you may not read", True
    NAME = "a name that is no plain path", True

    @property
    def words(self) -> str:
        """For the log."""
        return self.value[0]

    @property
    def may_be_missed(self) -> bool:
        """Whether to warn."""
        return self.value[1]


REMADE = ("config.json", "readme.md", "solar_plan.json")
"""At the top of the folder, in lower case: the hub has one README.md, some file systems know no upper case."""

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
    # The native config of Meta's and Mistral's weights, which says the old depth.
    "params.json",
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.distcp", "*.h5", "*.keras", "*.hdf5", "*.msgpack", "*.ot", "*.nemo"),
    *("*.gguf", "*.ggml", "*.llamafile", "*.dduf", "*.onnx", "*.onnx_data", "*.onnx.data", "*.tflite", "*.litertlm"),
    *("*.task", "*.pb", "*.engine", "*.mlmodel", "*.mlpackage", "*.mlmodelc", "*.pdparams", "*.pdiparams", "*.imatrix"),
)
"""Of this model in another form, of its adapters, or of a part; none of them follows the plan."""

PICKLES = ("*.pkl", "*.pickle", "*.joblib", "*.dill", "*.cloudpickle")

MODULES = "modules.json"
"""With this file at its top, a folder is one of sentence-transformers, and folders such as ``2_Dense`` are modules that
work on what the model gives."""
MODULE_FOLDER = re.compile(r"\d+_\w+")

CODE = ("*.py", "*.so", "*.so.*", "*.pyd", "*.dll", "*.dylib")

READ_BY_NAME = (
    *("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*"),
    *("*.model", "*.tiktoken", "tekken.json", "*.jinja"),
)
"""What configs and tokenizers are read from. Without such a file the model would be another one, so a link in its place
that leads out of the folder is refused instead of left behind."""


class Companions(NamedTuple):
    """The files of a folder or repository, judged. Paths are relative, with slashes."""

    kept: tuple[str, ...]
    left: Mapping[str, Reason]
    """Also folders that nobody looked into."""

    def notes(self) -> Iterator[tuple[int, str]]:
        """What stays behind and why: a line for each reason, with its log level."""
        for reason in Reason:
            names = sorted(name for name, why in self.left.items() if why is reason)
            if names and reason is not Reason.REMADE:
                level = logging.WARNING if reason.may_be_missed else logging.INFO
                yield level, f"not copied ({reason.words}): {listed(names)}"


def judge(sizes: Mapping[str, int | None], *, code: bool) -> Companions:
    """Which of these files an upscaled model takes over.

    Args:
        sizes: Of each file of a folder or repository, by its relative path, in bytes; None if unknown.
        code: Whether the user trusts code that comes with the model.

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
    """`judge` for a folder on this machine; links and special files stay behind too."""
    sizes, left = walk(directory)
    judged = judge(sizes, code=code)
    return Companions(judged.kept, {**judged.left, **left})


def walk(directory: Path) -> tuple[dict[str, int | None], dict[str, Reason]]:
    """The sizes of all files below a folder, and what is no file, or lies in a folder that is left behind whole.

    Links to folders are not followed. A link to a file that leads out counts as a file if it stands for a file
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
        # Code of a model's own may be called optimizer_x.py or adapter_x.py.
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
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(printable(f"{name:.200}") for name in names[:MAX_NAMED]) + more
