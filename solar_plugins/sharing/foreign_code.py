"""What a recipe, merge or pipeline makes a training run that is neither this package's nor Axolotl's own code."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.sharing.sources import Source, datasets_of


class Code(NamedTuple):
    """Code of others that a run would execute."""

    key: str
    what: str
    fix: str
    certain: bool = True
    """False: only data or a template in a sandbox, which is worth reading."""


READ_IT = "read that code before you run this, and remove the key if you do not need it"

MODULE_KEYS = ("trainer_cls", "cls_model_config", "type_of_model", "model_type", "tokenizer_type", "processor_type")
"""Axolotl imports what they name if it has a dot (axolotl/core/builders/base.py, axolotl/loaders/utils.py)."""
FUNCTION_KEYS = ("reward_funcs", "rollout_func", "serve_module", "workflow", "input_transform")
"""In any map of a recipe: functions or modules that are imported from the working directory."""
COMMAND_KEYS = re.compile(r"^(?:env|envs|environment|env_vars|commands?|cmd|scripts?|entrypoint|exec|pre_.*_command)$")

OWN_PROGRAMS = ("solar", "axolotl", "mergekit-yaml", "mergekit-extract-lora", "mergekit-moe", "mergekit-multi")
LAUNCHERS = (
    *(
        "accelerate",
        "torchrun",
        "srun",
        "mpirun",
        "mpiexec",
        "deepspeed",
        "python",
        "python3",
        "sbatch",
        "uv",
        "poetry",
    ),
    *("nice", "ionice", "taskset", "numactl", "nohup", "time", "nsys"),
)
MODULES = ("axolotl.", "solar_plugins.", "torch.distributed.run", "accelerate.")

# axolotl/utils/data/wrappers.py, DATASET_HANDLERS
HANDLERS = frozenset(
    ["alpaca", "explainchoice", "concisechoice", "summarizetldr", "jeopardy", "oasst", "gpteacher", "reflection"]
)


def foreign_code(source: Source) -> Iterator[Code]:
    """What a file makes a run execute beyond its own tools, and what sets environment variables."""
    if source.kind == "pipeline":
        yield from _of_pipeline(source.content)
    elif source.kind in ("recipe", "evaluation"):
        yield from _of_recipe(source.content)


def _of_recipe(content: Mapping[str, Any]) -> Iterator[Code]:
    for key, value in _all_keys(content):
        if value:
            yield from _of_key(key, key.rsplit(".", 1)[-1], value)
    for key in MODULE_KEYS:
        value = content.get(key)
        if isinstance(value, str) and "." in value and not value.startswith(("transformers.", "axolotl.")):
            yield Code(key, f"imports {value:.200}", READ_IT)
    for number, name in enumerate(_list(content.get("plugins"))):
        if not is_known_plugin(str(name)):
            yield Code(f"plugins[{number}]", f"imports {name!s:.200}, a plugin of another package", READ_IT)
    for place in datasets_of(content):
        kind = place.entry.get("type")
        if isinstance(kind, str) and imported_type(kind):
            text = f"imports the Python module of {kind:.200}, which is not Axolotl's"
            yield Code(f"{place.key}.type", text, READ_IT)
        if place.path.endswith(".py"):
            text = f"is a loading script, {place.path:.200}"
            yield Code(f"{place.key}.path", text, "convert the data to JSON Lines or Parquet")


def _of_key(key: str, last: str, value: Any) -> Iterator[Code]:
    if last == "trust_remote_code" and value is True:
        yield Code(key, "runs the Python code in the model's or dataset's repository", READ_IT)
    elif last in FUNCTION_KEYS:
        names = [str(name) for name in _list(value) or [value] if not str(name).startswith(("axolotl.", "trl."))]
        if names:
            yield Code(key, f"imports and calls {', '.join(names):.200}", READ_IT)
    elif COMMAND_KEYS.match(last):
        yield Code(key, f"sets or runs {value!s:.200}", READ_IT)
    elif last == "attn_implementation" and "/" in str(value) and not str(value).startswith("kernels-community/"):
        yield Code(key, f"downloads the compiled kernel {value!s:.200} and runs it", READ_IT)
    elif last == "deepspeed" and isinstance(value, str):
        what = f"DeepSpeed reads {value:.200}, which can name folders to write to"
        yield Code(key, what, "read that file", certain=False)
    elif last == "chat_template_jinja" and isinstance(value, str):
        what = f"{value:.100}" if "\n" not in value and len(value) < 200 else "in the recipe"
        yield Code(key, f"a Jinja template ({what}), which runs in a sandbox", "read it", certain=False)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def imported_type(kind: str) -> bool:
    """Whether a dataset's ``type`` names a module outside Axolotl.

    >>> [imported_type(kind) for kind in ("alpaca", "chat_template.default", "alpaca:phi", "my_code.pairs")]
    [False, False, False, True]
    """
    first, dot, _ = kind.split(":")[0].partition(".")
    return bool(dot) and first != "solar_plugins" and first not in HANDLERS | axolotl_types()


def is_unknown_type(kind: str) -> bool:
    """Whether a dataset's ``type`` is neither Axolotl's nor could be a module; False where Axolotl is not installed."""
    first, dot, _ = kind.split(":")[0].partition(".")
    types = axolotl_types()
    return not dot and find_spec("axolotl") is not None and first not in HANDLERS | types


@cache
def axolotl_types() -> frozenset[str]:
    """The names of the installed Axolotl's prompt strategies, from its files: nothing is imported."""
    spec = find_spec("axolotl")
    folders = [Path(place) / "prompt_strategies" for place in spec.submodule_search_locations or ()] if spec else []
    found = {path.stem for folder in folders for path in folder.rglob("*.py")}
    found |= {path.parent.name for folder in folders for path in folder.glob("*/__init__.py")}
    known = ["alpaca_chat", "chat_template", "chatml", "completion", "input_output", "llama3", "pretrain", "zephyr"]
    return frozenset(found or known) | {"user_defined", "bradley_terry", "stepwise_supervised", "orpo"}


def is_known_plugin(name: str) -> bool:
    """Whether a plugin is this package's or Axolotl's own, also in its short form ``liger.LigerPlugin``."""
    dotted = name.replace(":", ".")
    if dotted.startswith(("axolotl.integrations.", "solar_plugins.")):
        return True
    spec = find_spec("axolotl")
    top = dotted.split(".", 1)[0]
    folders = [Path(place) / "integrations" / top for place in spec.submodule_search_locations or ()] if spec else []
    with suppress(OSError, ValueError):
        return top.isidentifier() and any(folder.is_dir() for folder in folders) and find_spec(top) is None
    return False


def _of_pipeline(content: Mapping[str, Any]) -> Iterator[Code]:
    yield from _of_command("launch", content.get("launch"))
    for number, stage in enumerate(_list(content.get("stages"))):
        if isinstance(stage, Mapping):
            yield from _of_command(f"stages[{number}].launch", stage.get("launch"))
            yield from _of_command(f"stages[{number}].command", stage.get("command"))


def _of_command(key: str, text: Any) -> Iterator[Code]:
    if not isinstance(text, str):
        return
    try:
        words = shlex.split(text)
    except ValueError:
        return
    if "--trust-remote-code" in words or "--trust_remote_code=True" in words:
        yield Code(key, "runs the Python code in a model's repository (--trust-remote-code)", READ_IT)
    is_env = bool(words) and Path(words[0]).name == "env"
    variables = []
    rest = words[1:] if is_env else words
    while rest and re.match(r"^[A-Za-z_]\w*=", rest[0]):
        variables.append(rest.pop(0).split("=", 1)[0])
    if variables:
        yield Code(key, f"sets the environment variables {', '.join(variables)}", "check each of them")
    if rest and not _is_known(rest):
        yield Code(key, f"runs {shlex.join(rest):.200}", "read what it runs")


def _is_known(words: list[str]) -> bool:
    program = Path(words[0]).name if "/" not in words[0] else words[0]
    if program in OWN_PROGRAMS:
        return True
    if program not in LAUNCHERS:
        return False
    if "-c" in words[1:3] and program.startswith("python"):
        return False
    module = next((after for word, after in itertools.pairwise(words) if word == "-m"), None)
    scripts = [word for word in words[1:] if word.endswith((".py", ".sh"))]
    programs = [word for word in words[1:] if Path(word).name in ("bash", "sh", "curl", "wget", "pip")]
    return not scripts and not programs and (module is None or module.startswith(MODULES))


def _all_keys(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            yield place, inner
            yield from _all_keys(inner, place)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _all_keys(inner, f"{where}[{number}]")
