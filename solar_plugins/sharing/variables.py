"""The recipe files of a run without what belongs to its machine: paths become variables, accounts and trackers go.

The text stays as its author wrote it, comments included; only the values that change are replaced.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from solar_plugins.errors import ArgsError
from solar_plugins.running.identity import absolute, producer_of
from solar_plugins.sharing.bundle import VARIABLE, Variable
from solar_plugins.sharing.secrets import Machine, in_text, is_machine_path, this_machine

if TYPE_CHECKING:
    from yaml import Node, ScalarNode

OUTPUTS, BUNDLE = "OUTPUTS", "BUNDLE"
"""Variables that every reproduction sets by itself: the folder it writes to, and that of the bundle."""

OUTPUT_KEYS = {
    **{"dataset_prepared_path": "prepared", "cache_dir": "cache", "logging_dir": "logs", "records": "records"},
    "store": "answers.sqlite",
}
"""Keys of what a run writes next to its model, and what that is called in a reproduction."""
INCLUDED_KEYS = ("deepspeed", "chat_template_jinja")
"""Keys of small text files that are a part of the recipe."""
MAX_INCLUDED_BYTES = 100_000
RECIPES = "recipes/"
"""Where a bundle has recipes, and the small files that are a part of them."""
ENDPOINT = Variable(meaning="the address of the served model", example="http://localhost:8000/v1")
PATH_KEYS = (
    *(
        "base_model",
        "base_model_config",
        "tokenizer_config",
        "processor_config",
        "lora_model_dir",
        "path",
        "data_files",
    ),
    *("model", "models", "files", "inputs", "outputs", "output", "output_dir", "deepspeed"),
)
"""Keys whose text is a path if a file or folder of that name exists."""
NEVER_PATHS = ("type", "split", "name", "field", "strategy", "plugins", "ds_type", "kind")

STAGE_FILES = ("recipe", "merge", "mixture")
"""Keys of a pipeline's stages that name files."""

LEFT_OUT = re.compile(
    r"(use_)?(wandb|mlflow|comet|trackio|swanlab|tensorboard|otel|opentelemetry|ray|gcp|aws|s3)(_\w+)?"
    r"|(hub|push_to_hub|hf)_\w+|resume_from_checkpoint|auto_resume_from_checkpoints|local_rank|debug|profiler_\w+"
)
"""Top-level keys that do not change what is trained: accounts, trackers, uploads and where a run resumed."""
PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
"""An anchor and a tag before a value."""
LAUNCH = "accelerate launch"
PRIVATE_LAUNCH = re.compile(
    r"(?:^|\s)--?(?:account|A|partition|p|qos|reservation|nodelist|w|mail[\w-]*|user|uid|chdir|D|host\w*|include|exclude"
    r"|master[_-]addr|main_process_\w+|rdzv[\w-]*)(?=[=\s]|$)"
)
"""Options of launchers that name an account, a queue or a machine."""


def names_machine(text: str, machine: Machine) -> bool:
    """Whether a text has the name of the user or the host as a word of its own, or a path of a home directory.

    A hub id of an account with the user's name is public.

    >>> machine = Machine("alicia", "node-17", "/home/alicia", "/scratch/alicia")
    >>> [names_machine(text, machine) for text in ("alicia_rows.jsonl", "on node-17", "alicia/model", "malicia")]
    [True, True, False, False]
    """
    user = re.escape(machine.user)
    text = re.sub(rf"(?<![\w/.-]){user}/[\w.-]+(?![\w/])", "", text) if user else text
    names = Machine(_words(machine.user), _words(machine.host), "", "")
    found = [*in_text(text, machine), *in_text(_words(text), names)]
    return any(one.kind != "secret" for one in found)


def _words(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip()


class Text(NamedTuple):
    """A recipe file without what belongs to a machine."""

    text: str
    left_out: tuple[str, ...]
    """The keys and comments that were removed, in words."""


@dataclass
class Variables:
    """Collects the variables of all files of a run: the same path is the same variable everywhere.

    Args:
        outputs: What each stage writes: the variable, by the path as a recipe has it.
        machine: Whose names must not appear.
    """

    machine: Machine = field(default_factory=lambda: this_machine())
    outputs: dict[str, str] = field(default_factory=dict)
    declared: dict[str, Variable] = field(default_factory=dict)
    included: dict[str, Path] = field(default_factory=dict)
    """Files that are copied into the bundle as they are: by their path in it."""
    _in_bundle: dict[Path, str] = field(default_factory=dict)
    _names: dict[Path, str] = field(default_factory=dict)
    _folders: dict[Path, str] = field(default_factory=dict)
    _where: str = ""

    def add_output(self, stage: str, output: str, path: str, what: str) -> None:
        """Declare what a stage writes.

        Args:
            stage: The stage.
            output: What the output is called: the stage, or the stage and a number.
            path: As the recipes have it.
            what: In words.
        """
        name = self._free(output)
        self.declared[name] = Variable(meaning=what, example=f"outputs/{output}", kind="output", producer=stage)
        self.outputs[path] = name

    def path_in_bundle(self, path: Path, otherwise: str) -> str:
        """The path in the bundle of a file that is copied into it, which is unique.

        Args:
            path: The file.
            otherwise: What it is called where its own name has that of the user or the machine.
        """
        path = absolute(str(path))
        if path not in self._in_bundle:
            name = Path(self._file_name(path, otherwise))
            taken = [one.casefold() for one in self._in_bundle.values()]
            names = (f"{RECIPES}{name.stem}{f'_{n}' if n > 1 else ''}{name.suffix}" for n in count(1))
            self._in_bundle[path] = next(one for one in names if one.casefold() not in taken)
        return self._in_bundle[path]

    def include(self, path: Path, otherwise: str) -> str:
        """Copy a file into the bundle as it is; return its path there."""
        name = self.path_in_bundle(path, otherwise)
        self.included[name] = path
        return name

    def replaced(self, text: str, keys: Sequence[str]) -> str | None:
        """The value without this machine's paths; None if it has none.

        Args:
            text: A value.
            keys: The keys that lead to it; the number of an element of a list is one too.
        """
        if VARIABLE.search(text):
            raise ArgsError(
                f"{'.'.join(keys)}: {text!r:.100} has a ${{...}}, which would be a variable of the bundle; "
                "write the value itself"
            )
        named = [key for key in keys if not key.isdigit()]
        key = named[-1] if named else ""
        if key == "base_url" and not text.startswith("https://"):
            self.declared["ENDPOINT"] = ENDPOINT
            return "${ENDPOINT}"
        if key in NEVER_PATHS or not text or "\n" in text or "://" in text:
            return None
        if key in OUTPUT_KEYS:
            return self._folder(text, OUTPUT_KEYS[key])
        if (producer := producer_of(text, list(self.outputs))) is not None:
            inside = absolute(text).relative_to(absolute(producer)).as_posix()
            return f"${{{self.outputs[producer]}}}" + ("" if inside == "." else f"/{inside}")
        if not self._is_path(text, key):
            return None
        path = absolute(text)
        name = self._in_bundle.get(path)
        if key in INCLUDED_KEYS and path.is_file() and path.stat().st_size <= MAX_INCLUDED_BYTES:
            name = self.include(path, "settings")
        if name is not None:
            self.declared.setdefault(BUNDLE, Variable(meaning="the folder of the bundle", example=".", kind="output"))
            return f"${{{BUNDLE}}}/{name}"
        place = re.sub(r"\.(\d+)\b", r"[\1]", ".".join(keys))
        return f"${{{self._input(path, key, f'{self._where}{place}')}}}"

    def _is_path(self, text: str, key: str) -> bool:
        if is_machine_path(text) or text.startswith(("./", "../")):
            return True
        try:
            exists = Path(text).exists()
        except (OSError, ValueError):
            return False
        return exists and (key in PATH_KEYS or "/" in text or "." in text)

    def _folder(self, text: str, what: str) -> str:
        path = absolute(text)
        if path not in self._folders:
            number = sum(one == what or one.startswith(f"{what}-") for one in self._folders.values())
            self._folders[path] = f"{what}-{number + 1}" if number else what
        self.declared.setdefault(
            OUTPUTS, Variable(meaning="the folder that a reproduction writes to", example="outputs", kind="output")
        )
        return f"${{{OUTPUTS}}}/{self._folders[path]}"

    def _input(self, path: Path, key: str, where: str) -> str:
        if path not in self._names:
            shown = self._file_name(path, "data" if key in ("path", "data_files") else key or "input")
            name = self._free("BASE_MODEL" if key == "base_model" else Path(shown).stem if path.suffix else shown)
            what = "folder" if path.is_dir() else "file"
            meaning = f"{where}: the local {what} {shown}"
            self.declared[name] = Variable(meaning=meaning, example=f"path/to/{shown}")
            self._names[path] = name
        return self._names[path]

    def variable_of(self, text: str) -> str | None:
        """The variable that stands for a local path."""
        return self._names.get(absolute(text))

    def file_name(self, text: str) -> str:
        """The last part of a path, as far as it names neither the user nor the machine."""
        return self._file_name(absolute(text), "data")

    def _file_name(self, path: Path, otherwise: str) -> str:
        name = re.sub(r"[^\w.+-]+", "_", path.name, flags=re.ASCII)[:80] or otherwise
        return f"{otherwise}{path.suffix}" if names_machine(name, self.machine) else name

    def _free(self, text: str) -> str:
        name = re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_")[:50] or "INPUT"
        name = name if name[0].isalpha() else f"INPUT_{name}"
        name = f"{name}_1" if name in (OUTPUTS, BUNDLE) else name
        number = 2
        free = name
        while free in self.declared:
            free, number = f"{name}_{number}", number + 1
        return free

    def in_file(self, text: str, where: str, files: Mapping[str, str] = MappingProxyType({})) -> Text:
        """A recipe, merge, mixture or pipeline file with variables.

        Args:
            text: Its text.
            where: Its name in errors.
            files: Paths relative to the file, and what they are in the bundle: those of a pipeline's stages, and the
                prompts of a `solar maths` recipe.

        Raises:
            ArgsError: A value has a ``${...}`` of its own.
        """
        import yaml

        self._where = f"{where}: "
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        removed = {key: (start, end) for key, start, end in _left_out_keys(root, text)}
        edits = [(start, end, "") for start, end in removed.values()]
        left_out = [f"{where}: {key}" for key in removed]

        def is_removed(place: int) -> bool:
            return any(start <= place < end for start, end in removed.values())

        scalars: dict[tuple[int, int], tuple[str, tuple[str, ...]]] = {}
        for node, keys in _scalars(root):  # An alias is the node of its anchor.
            if not is_removed(node.start_mark.index):
                scalars.setdefault((node.start_mark.index, node.end_mark.index), (node.value, keys))
        for (start, end), (value, keys) in scalars.items():
            try:
                relative = keys[-1] in STAGE_FILES or keys[0] == "prompts"
                new = files.get(value) if files and relative else self._value(value, keys)
            except ArgsError as error:
                raise ArgsError(f"{where}: {error}") from None
            if new is not None:
                left_out += [f"{where}: launch, which is now {new}"] if keys[-1] == "launch" else []
                start += len(PROPERTIES.match(text, start)[0])  # type: ignore[index]  # it matches nothing too
                edits.append((start, end, json.dumps(new, ensure_ascii=False)))
        for start, end, line in _comments(text, list(scalars)):
            if not is_removed(start) and names_machine(text[start:end], self.machine):
                edits.append((start, end, ""))
                left_out.append(f"{where}: the comment on line {line}")
        for start, end, new in sorted(edits, reverse=True):
            text = text[:start] + new + text[end:]
        return Text("\n".join(line.rstrip() for line in text.split("\n")), tuple(left_out))

    def _value(self, text: str, keys: tuple[str, ...]) -> str | None:
        key = next((key for key in reversed(keys) if not key.isdigit()), "")
        if key == "launch":
            private = PRIVATE_LAUNCH.search(text) or any(map(is_machine_path, shlex.split(text)))
            return LAUNCH if private else None
        if key == "command":
            words = [self.replaced(word, ("command",)) for word in shlex.split(text)]
            if not any(words):
                return None
            return shlex.join(new or old for new, old in zip(words, shlex.split(text), strict=True))
        parts = text.split("+") if key == "model" else [text]  # mergekit's model+lora
        new = [self.replaced(part, keys) for part in parts]
        return "+".join(one or part for one, part in zip(new, parts, strict=True)) if any(new) else None


def _scalars(node: Node | None, keys: tuple[str, ...] = ()) -> Iterator[tuple[ScalarNode, tuple[str, ...]]]:
    """Every scalar value of a document with the keys that lead to it. Keys themselves are left out."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*keys, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _scalars(value, (*keys, str(number)))
    elif isinstance(node, yaml.ScalarNode):
        yield node, keys


def _left_out_keys(root: Node | None, text: str) -> Iterator[tuple[str, int, int]]:
    """The top-level keys that are left out, and where their lines start and end."""
    import yaml

    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if LEFT_OUT.fullmatch(str(key.value)) and key.start_mark.column == 0:
            start, end = key.start_mark.index, value.end_mark.index
            if getattr(value, "flow_style", None) is False:  # A block ends where the next key starts, after comments.
                end = max((node.end_mark.index for node, _ in _scalars(value)), default=end)
            line_end = text.find("\n", end - 1)
            yield str(key.value), start, line_end + 1 if line_end >= 0 else len(text)


def _comments(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Where comments are: start, end and line. A ``#`` in a value is none."""
    inside = iter(sorted(spans))
    start, end = next(inside, (len(text), len(text)))
    position, number = 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        for place in (position + match.start() for match in re.finditer(r"(?:(?<=\s)|^)#", line)):
            while end <= place:
                start, end = next(inside, (len(text), len(text)))
            if not start <= place < end:
                yield place, position + len(line), number
                break
        position += len(line) + 1
