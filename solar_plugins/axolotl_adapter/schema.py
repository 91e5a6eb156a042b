"""Recipes against the schema of the installed Axolotl and its plugins.

Importing Axolotl takes about ten seconds and changes the process, so `solar_plugins.sharing.schemas` calls this in a
process of its own, once for all recipes. Only plugins that every run of Axolotl loads anyway, Axolotl's own and ours
are imported. No plugin's ``register`` is called, no code of a recipe or of the hub runs, and nothing is fetched.
"""

from __future__ import annotations

import copy
import logging
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel, ValidationError

from solar_plugins.axolotl_adapter.ignored_keys import MIN_SIMILARITY, SET_BY_COMMANDS, unknown_keys, with_overrides
from solar_plugins.errors import SolarError
from solar_plugins.text import close_match

GPU = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}
"""The machine that recipes are validated for: an H100. What needs several GPUs declares it by keys of its own."""
MAX_FILE_BYTES = 5_000_000
FILE_KEYS = ("deepspeed", "chat_template_jinja")
"""Keys whose file a validator reads."""
DATASET_KEYS = ("datasets", "test_datasets", "pretraining_dataset")

type Problem = tuple[str, str, str]
"""The key, what is wrong with it, and the key that was probably meant."""


class Answer(TypedDict):
    """What Axolotl's schema says about one recipe."""

    errors: list[Problem]
    """Axolotl or our plugin would reject the recipe."""
    dropped: list[Problem]
    """Keys that would be ignored."""
    warnings: list[Problem]
    """What Axolotl logs while it validates."""
    not_loaded: dict[str, str]
    """Plugins that were not imported, with the reason; keys that only they know are not in ``dropped``."""
    unknown_with_plugins: list[str]
    """Keys that no schema here knows, but one of ``not_loaded`` may."""
    content: dict[str, Any] | None
    """The recipe with Axolotl's defaults filled in and deprecated names replaced; None if it is rejected."""


def check_by_schema(recipes: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """What the installed Axolotl says about recipes, in order. Call it in a process of its own: see above.

    Args:
        recipes: Their keys, with a command line's or pipeline's overrides.
    """
    log = _Warnings()
    validate = _validator()
    return [_safe_answer(dict(recipe), validate, log) for recipe in recipes]


def _safe_answer(recipe: dict[str, Any], validate: Validate, log: _Warnings) -> Answer:
    """One recipe that breaks Axolotl's validators must not hide what they say about the others."""
    try:
        return _answer(recipe, validate, log)
    except Exception as error:
        text = f"Axolotl's validation fails: {type(error).__name__}: {error!s:.300}"
        return Answer(
            errors=[("", text, "")], dropped=[], warnings=[], not_loaded={}, unknown_with_plugins=[], content=None
        )


class _Warnings(logging.Handler):
    """Collects Axolotl's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("axolotl.solar_plugins"):
            self.texts.append(record.getMessage())


type Validate = Callable[[dict[str, Any]], tuple[dict[str, Any], type[BaseModel]]]
"""Gives the validated content and the schema, merged with those of the registered plugins."""


def _validator() -> Validate:
    import axolotl.utils.config as axolotl_config
    import axolotl.utils.schemas.validation as axolotl_validation
    from axolotl.integrations.base import PluginManager
    from axolotl.integrations.config import merge_input_args
    from axolotl.utils.dict import DictDefault

    merged: dict[tuple[str, ...], Any] = {}

    def merge_once() -> Any:
        """Building the classes takes longer than validating with them."""
        plugins = tuple(PluginManager.get_instance().plugins)
        if plugins not in merged:
            merged[plugins] = merge_input_args()
        return merged[plugins]

    axolotl_config.merge_input_args = merge_once
    # Without flash-attn this would download a kernel from the hub and run it.
    axolotl_validation._flash_attn_kernel_failure = lambda _name: None
    environment = {"torch_version": version("torch").split("+")[0]}

    def validate(recipe: dict[str, Any]) -> tuple[dict[str, Any], type[BaseModel]]:
        validated = axolotl_config.validate_config(
            DictDefault(recipe), capabilities=dict(GPU), env_capabilities=environment
        )
        content = validated.to_dict()
        for key in ("capabilities", "env_capabilities"):
            content.pop(key, None)
        return content, merge_once()[1]

    return validate


def _answer(recipe: dict[str, Any], validate: Validate, log: _Warnings) -> Answer:
    from axolotl.integrations.base import PluginManager, get_builtin_plugins

    manager = PluginManager.get_instance()
    builtin = get_builtin_plugins()
    for name in [name for name in manager.plugins if name not in builtin]:
        del manager.plugins[name]
    errors = list(_bad_files(recipe))
    recipe = {key: value for key, value in recipe.items() if key not in {place for place, _, _ in errors}}
    not_loaded = dict[str, str]()
    listed = recipe.get("plugins")
    for name in map(str, listed if isinstance(listed, list) else []):
        loadable = _loadable(name, builtin)
        if problem := _register(manager, loadable, builtin) if loadable else "a plugin of another package":
            not_loaded[name] = problem
    logger = logging.getLogger("axolotl")
    logger.addHandler(log)
    log.texts = []
    before: dict[str, Any] = copy.deepcopy(recipe)
    content: dict[str, Any] | None = None
    try:
        if is_evaluation(recipe):
            content, schema = before, _schema()
        else:
            before, found = _as_our_plugin_does(before)
            errors += found
            content, schema = validate(copy.deepcopy(before))
    except Exception as error:  # Validators raise errors of any type.
        errors += _problems(error, recipe)
        schema = _schema()
    logger.removeHandler(log)
    if errors:
        content = None
    unknown = list(_unknown(recipe, schema))
    dropped = [one for one in unknown if not not_loaded or "." in one[0] or one[2]]
    if content is not None:
        dropped += _dropped_by_datasets(before, content)
        content["plugins"] = listed
    rejected = {key for key, _, _ in errors} | {key for _, text, _ in errors for key in re.findall(r"`(\w+)`", text)}
    return Answer(
        errors=errors,
        dropped=[one for one in dropped if one[0].split(".")[0] not in rejected],
        warnings=[
            (_key_in(text, recipe), text, "") for text in dict.fromkeys(log.texts) if not UNIMPORTANT.match(text)
        ],
        not_loaded=not_loaded,
        unknown_with_plugins=[key for key, _, close in unknown if not_loaded and "." not in key and not close],
        content=content,
    )


UNIMPORTANT = re.compile(
    r"Auto-enabling|Translated|Context parallelism \(CP\) is enabled|`trust_remote_code` is set"
    r"|.*(?i:automatically set)|.*using default value|Could not load plugin|torch=="
)
"""Warnings of Axolotl that ask for nothing, or that `solar recipes check` words itself."""


def _bad_files(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Files that a validator would read, and that may never end."""
    for key in FILE_KEYS:
        value = recipe.get(key)
        if isinstance(value, str) and len(value) < 1000 and "\n" not in value:
            with suppress(OSError, ValueError):
                status = Path(value).stat()
                if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                    yield key, f"{value!r}: expected a file of at most {MAX_FILE_BYTES:,} bytes", ""


def is_evaluation(recipe: Mapping[str, Any]) -> bool:
    """Whether a file is for ``axolotl lm-eval``, which reads it without validating it."""
    return "base_model" not in recipe and any(str(key).startswith("lm_eval_") for key in recipe)


def _schema() -> type[BaseModel]:
    import axolotl.utils.config as axolotl_config

    schema: type[BaseModel] = axolotl_config.merge_input_args()[1]
    return schema


def _loadable(name: str, builtin: Sequence[str]) -> str | None:
    """The plugin's name as it is registered, if it may be imported here."""
    name = ".".join(name.split(":"))
    if name in builtin or name == "solar_plugins.SolarPlugin" or name.startswith("axolotl.integrations."):
        return name
    top = name.split(".")[0]
    with suppress(ImportError, ValueError):
        if find_spec(top) is None and find_spec(f"axolotl.integrations.{top}") is not None:
            return f"axolotl.integrations.{name}"
    return None


def _register(manager: Any, name: str, builtin: Sequence[str]) -> str:
    if name in builtin and name in manager.plugins:
        return ""
    try:
        manager.register(name, required=True)
    except Exception as error:  # Whatever its module raises.
        return f"cannot be loaded here ({type(error).__name__}: {error})"
    return ""


def _as_our_plugin_does(recipe: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The recipe as our plugin hands it on, and what the plugin would reject."""
    from solar_plugins.axolotl_adapter.recipe_checks import changes, check_recipe
    from solar_plugins.recipe import concerns_us, parse_recipe

    if not concerns_us(recipe):
        return recipe, []
    try:
        parsed = parse_recipe(with_overrides(recipe))
        check_recipe(parsed)
    except SolarError as error:
        lines = str(error).split("\n")
        return recipe, [(line.split(":", 1)[0].strip(), line, "") for line in lines]
    return recipe | changes(parsed), []


def _problems(error: Exception, recipe: Mapping[str, Any]) -> Iterator[Problem]:
    if not isinstance(error, ValidationError):
        text = " ".join(str(error).split()) or type(error).__name__
        yield _key_in(text, recipe), text, ""
        return
    by_key: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        place = detail["loc"]
        key = _path(place[:1] if place and place[0] not in DATASET_KEYS else place[:2])
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        text = " ".join(message.split())
        if not place:
            key = _key_in(text, recipe)
        else:
            inner = _path([part for part in place[1:] if part not in ("str", "int", "bool", "float")])
            value = "" if detail["type"] == "missing" else f"{detail['input']!r:.100}: "
            text = f"{value}{text}" + (f" (in {inner})" if inner and place[0] not in DATASET_KEYS else "")
        if text not in by_key.setdefault(key, []):
            by_key[key].append(text)
    for key, texts in by_key.items():
        yield key, " or ".join(texts[:4]), ""


def _path(parts: Iterable[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _key_in(text: str, recipe: Mapping[str, Any]) -> str:
    """The first key of the recipe that a message of Axolotl names; empty if it names none."""
    words = re.findall(r"\w+", text)
    named = [word for word in words if word in recipe]
    by_value = [key for word in words if "_" in word for key, value in recipe.items() if value == word]
    likely = [*(word for word in named if "_" in word), *by_value, *named]
    return likely[0] if likely else ""


def _unknown(recipe: Mapping[str, Any], schema: type[BaseModel]) -> Iterator[Problem]:
    for path, key, known in unknown_keys(recipe, schema):
        prefixless = path == "fsdp_config." and key.removeprefix("fsdp_") in known  # Axolotl strips the prefix.
        if key in SET_BY_COMMANDS or (not path and recipe.get(key) is None) or prefixless:
            continue
        yield f"{path}{key}", "Axolotl has no such key and ignores it", _did_you_mean(key, known)


def _did_you_mean(key: str, known: Sequence[str]) -> str:
    return close_match(key, known, MIN_SIMILARITY) or ""


def _dropped_by_datasets(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys of datasets that validation lost: which of several models an entry is, depends on the recipe's method."""
    from axolotl.utils.schemas import datasets

    models = [model for model in vars(datasets).values() if isinstance(model, type) and issubclass(model, BaseModel)]
    known = {field for model in models for field in model.model_fields}
    for where in DATASET_KEYS:
        kept = after.get(where)
        entries = before.get(where)
        for number, (entry, left) in enumerate(zip(_listed(entries), _listed(kept), strict=False)):
            if not isinstance(entry, Mapping) or not isinstance(left, Mapping):
                continue
            for key, value in entry.items():
                if key in left or value in (None, False) or key in RENAMED_IN_DATASETS:
                    continue
                place = f"{where}[{number}].{key}"
                if key in known:
                    by = f"rl: {before['rl']}" if before.get("rl") else where
                    yield place, f"Axolotl ignores this key under {by}", ""
                else:
                    yield place, "Axolotl has no such key and ignores it", _did_you_mean(str(key), sorted(known))


RENAMED_IN_DATASETS = ("message_field_role", "message_field_content", "conversation")
"""Deprecated keys, of which a validator makes others."""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if isinstance(value, Mapping) else []
