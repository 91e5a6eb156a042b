"""Recipes and merges against the schemas of the installed Axolotl and mergekit, in one process of its own.

Both take seconds to import and change the process. That process imports nothing from the working directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from solar_plugins.axolotl_adapter.schema import Answer, Problem, check_by_schema
from solar_plugins.errors import SolarError
from solar_plugins.text import close_match

TIMEOUT_SECONDS = 900


class Answers(NamedTuple):
    """What the schemas say, in the order of the question; None where the package is not installed."""

    recipes: list[Answer] | None
    merges: list[MergeAnswer] | None


class MergeAnswer(NamedTuple):
    """What mergekit's schema says about one merge."""

    errors: list[Problem]
    dropped: list[Problem]
    content: dict[str, Any] | None
    """With defaults; None if it is rejected."""


def ask_schemas(recipes: Sequence[Mapping[str, Any]], merges: Sequence[Mapping[str, Any]]) -> Answers:
    """What the installed Axolotl and mergekit say about recipes and merges.

    Args:
        recipes: The keys of Axolotl recipes.
        merges: The keys of mergekit recipes.

    Raises:
        SolarError: The process failed.
    """
    has_axolotl, has_mergekit = (find_spec(name) is not None for name in ("axolotl", "mergekit"))
    question = {"recipes": list(recipes) if has_axolotl else [], "merges": list(merges) if has_mergekit else []}
    answers = _in_a_process(question) if any(question.values()) else {"recipes": [], "merges": []}
    return Answers(
        answers["recipes"] if has_axolotl else None,
        [MergeAnswer(*answer) for answer in answers["merges"]] if has_mergekit else None,
    )


def command() -> list[str]:
    """The command line of that process, without the file for its answers."""
    return [sys.executable, "-P", "-m", __name__]


def _in_a_process(question: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "answers.json"
        quiet = {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            run = subprocess.run(
                [*command(), str(result)],
                input=json.dumps(question, default=str),
                env=os.environ | quiet,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SolarError(
                f"the schemas of Axolotl and mergekit gave no answer within {TIMEOUT_SECONDS} s; check fewer files"
            ) from None
        if run.returncode or not result.is_file():
            last = " ".join(run.stderr.split()[-60:])
            raise SolarError(
                f"the process that asks Axolotl and mergekit about keys failed (exit status {run.returncode}): {last}"
                "\nIf one cannot be imported, repair it: pip install 'solar_plugins[axolotl,mergekit]'"
            )
        answers: dict[str, Any] = json.loads(result.read_text())
        return answers


def _check_merges(merges: Sequence[Mapping[str, Any]]) -> list[MergeAnswer]:
    if not merges:
        return []
    from mergekit.config import MergeConfiguration
    from mergekit.merge_methods import registered_methods

    specs = [method.spec for method in registered_methods()]
    methods = {spec.name: {parameter.name for parameter in spec.parameters} for spec in specs}
    return [_merge_answer(merge, MergeConfiguration, methods) for merge in merges]


def _merge_answer(merge: Mapping[str, Any], schema: type[BaseModel], methods: Mapping[str, set[str]]) -> MergeAnswer:
    merge = {key: value for key, value in merge.items() if key != "name"}  # Of mergekit-multi.
    try:
        content = schema.model_validate(merge).model_dump(mode="json", exclude_none=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        found = {".".join(map(str, one["loc"])): f"{one['input']!r:.80}: {one['msg']}" for one in details}
        return MergeAnswer([(key, text, "") for key, text in found.items()], [], None)
    except (RuntimeError, ValueError, TypeError) as error:
        return MergeAnswer([("", str(error), "")], [], None)
    method = str(merge["merge_method"])
    if method not in methods:
        close = close_match(method, methods) or ""
        return MergeAnswer(
            [("merge_method", f"{method!r} is not a merge method of the installed mergekit", close)], [], None
        )
    dropped = [*_dropped(merge, content), *_unknown_parameters(merge, methods[method], method)]
    return MergeAnswer([], dropped, content)


def _dropped(before: Any, after: Any, where: str = "") -> Iterator[Problem]:
    """Keys of a nested value that are gone after validation."""
    if isinstance(before, Mapping):
        for key, value in before.items():
            if isinstance(after, Mapping) and key in after:
                yield from _dropped(value, after[key], f"{where}{key}.")
            elif isinstance(after, Mapping) and value is not None:
                yield f"{where}{key}", "mergekit has no such key and ignores it", ""
    elif isinstance(before, list) and isinstance(after, list):
        for number, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _dropped(one, other, f"{where.rstrip('.')}[{number}].")


def _unknown_parameters(value: Any, known: set[str], method: str, where: str = "") -> Iterator[Problem]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "parameters" and isinstance(inner, Mapping):
                for name in inner:
                    if name not in known:
                        text = f"merge_method: {method} has no such parameter and ignores it"
                        yield f"{where}parameters.{name}", text, close_match(str(name), known) or ""
            else:
                yield from _unknown_parameters(inner, known, method, f"{where}{key}.")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _unknown_parameters(inner, known, method, f"{where.rstrip('.')}[{number}].")


def main(result: str) -> None:
    """Answer the question on the standard input, in the file ``result``."""
    question = json.load(sys.stdin)
    recipes, merges = question["recipes"], question["merges"]
    answers = {"recipes": check_by_schema(recipes) if recipes else [], "merges": _check_merges(merges)}
    Path(result).write_text(json.dumps(answers, default=str))


if __name__ == "__main__":
    main(sys.argv[1])
