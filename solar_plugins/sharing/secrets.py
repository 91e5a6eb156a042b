"""Secrets, and names and paths of a machine, in a text or in the values of a YAML or JSON file.

A token is found by its form, or by the name of the key or variable that it stands under. What is found is never
printed: a message has the place and the kind only.
"""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from solar_plugins.lineage.public import TOKEN, TOKENS

type Kind = Literal["secret", "path", "name"]


class Private(NamedTuple):
    """Something that must not leave the machine."""

    kind: Kind
    """``secret``: a token, key or password; ``path``: a path of this kind of machine; ``name``: of a user or host."""
    where: str
    """The key, such as ``datasets[0].path``, or ``line 12``."""
    what: str
    """In words, such as ``a Hugging Face token``. Of a secret, nothing but its kind; of a path, the path itself."""


class Machine(NamedTuple):
    """The names of a machine that a shared file must not contain."""

    user: str
    host: str
    home: str
    folder: str
    """The working directory."""


SECRET_NAME = re.compile(
    r"(?:^|[_.-])(?:(?:hub|hf|auth|access|api|bearer|private|github|slack|wandb|session|refresh|bot|login)_?token"
    r"|huggingface(?:hub)?(?:_hub)?_token|api_?key|secret(?:_?(?:access_?)?key)?|access_?key(?:_id)?|private_?key"
    r"|client_?secret|passw(?:or)?d|passphrase|credentials?)$",
    re.IGNORECASE,
)
"""Names of keys and environment variables that hold a secret. ``pad_token`` and its like are none."""

_ASSIGNMENT = re.compile(r"(?<![\w$-])([A-Za-z][\w-]*)[\"']?\s*[=:]\s*(?=[\"']?([^\s\"'#,;&|]+))")
_PLACEHOLDER = re.compile(
    r"^(?:\$|%\w+%|<.*>$|\{\{|\*+$|x+$|\.+$|~$|(?:true|false|null|none|yes|no|on|off|auto)$"
    r"|(?:your|my|the|change)[_-]|env[.:]|os\.environ|(?:REDACTED|HIDDEN|MASKED|TODO|FIXME)$)",
    re.IGNORECASE,
)
"""Of values that are no secret: a variable, a placeholder, a truth value."""

_HOME = re.compile(
    r"(?<![\w.:/])(?:file://)?(?:/(?:home|Users)/[\w.@+-]+|/root(?=/|\b)|[A-Za-z]:[\\/]+Users[\\/]+[\w.@+-]+)(?:[\\/][\w.@+-]+)*"
)
_ABSOLUTE = re.compile(
    r"(?:file://)?(?:/[\w.@+=~-]+(?:/[\w.@+=~-]*)+|/(?:data|mnt|tmp|scratch|workspace|content|root|home|opt|srv)/?"
    r"|~[\w-]*(?:/.*)?|[A-Za-z]:[\\/].*|\\\\[\w.-]+\\.*)"
)
_COMMON_NAMES = re.compile(
    r"root|users?|ubuntu|admin(istrator)?|runner|home|work|data|tests?|guest|nobody|jovyan|ec2-user|vscode|local.*"
    r"|docker|container|node|models?|base|train|machine|server|python|main|build|debian|solar",
    re.IGNORECASE,
)


def in_file(text: str, content: Any, machine: Machine | None = None) -> list[Private]:
    """What is private in a file: in its text, comments included, and in its values.

    Args:
        text: The text of the file.
        content: Its value, where it is YAML or JSON; a value may join what the text breaks over lines.
        machine: Whose names to look for; default: this one.
    """
    found = in_value(content, machine)
    seen = {one.what for one in found}
    return [*found, *(one for one in in_text(text, machine) if one.what not in seen)]


def in_value(value: Any, machine: Machine | None = None, where: str = "") -> list[Private]:
    """What is private in a nested value. Keys are looked at as well as values."""
    return list(dict.fromkeys(_in_value(value, machine or this_machine(), where)))


def in_text(text: str, machine: Machine | None = None) -> list[Private]:
    """What is private in a text of any kind, by line. Of absolute paths only those of home directories count here.

    >>> [one.where for one in in_text("# by me" + chr(10) + "export HF_TOKEN=hf_" + 34 * "a")]
    ['line 2']
    """
    machine = machine or this_machine()
    return list(
        dict.fromkeys(
            one
            for number, line in enumerate(text.splitlines(), 1)
            for one in _in_line(line[:100_000], machine, f"line {number}")
        )
    )


@cache
def this_machine() -> Machine:
    """The names of this machine and its user; empty where the system does not say."""
    user = host = home = folder = ""
    with suppress(OSError, KeyError, ImportError):
        user = getpass.getuser()
    with suppress(OSError):
        host = socket.gethostname()
    with suppress(RuntimeError, OSError):
        home = str(Path.home())
    with suppress(OSError):
        folder = str(Path.cwd())
    return Machine(user, host, home, folder)


def _in_value(value: Any, machine: Machine, where: str) -> Iterator[Private]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            path = f"{where}.{key}" if where else str(key)
            yield from _in_line(str(key), machine, where or "a key")
            if SECRET_NAME.search(str(key)) and _is_secret_value(inner):
                yield Private("secret", path, f"a value of the secret key {str(key)[:60]}")
            yield from _in_value(inner, machine, path)
    elif isinstance(value, str):
        if is_machine_path(value):
            yield Private("path", where, value[:200])
        yield from (one for line in value.splitlines() for one in _in_line(line[:100_000], machine, where))
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for number, inner in enumerate(value):
            yield from _in_value(inner, machine, f"{where}[{number}]")


def is_machine_path(text: str) -> bool:
    r"""Whether a value is a path that only exists on one machine: absolute, or in a home directory.

    >>> [is_machine_path(text) for text in ("/data/x.jsonl", "~/x", "C:\\x", "data/x.jsonl", "/think", "</s>")]
    [True, True, True, False, False, False]
    """
    return _ABSOLUTE.fullmatch(text.strip()) is not None


def _in_line(line: str, machine: Machine, where: str) -> Iterator[Private]:
    names = list(TOKENS)
    tokens = list(TOKEN.finditer(line))
    yield from (Private("secret", where, names[int(str(match.lastgroup)[1:])]) for match in tokens)
    for match in [] if tokens else _ASSIGNMENT.finditer(line):
        if SECRET_NAME.search(match[1]) and _is_secret_value(match[2]):
            yield Private("secret", where, f"a value of the secret key {match[1][:60]}")
    if where.startswith("line "):
        yield from (Private("path", where, match[0][:200]) for match in _HOME.finditer(line))
        for folder in {machine.home, machine.folder}:
            if len(folder) > 4 and folder.count("/") > 1 and folder in line and not _HOME.search(line):
                yield Private("path", where, folder)
    yield from _names_in(line, machine, where)


def _names_in(line: str, machine: Machine, where: str) -> Iterator[Private]:
    for what, name in (("the user name", machine.user), ("the host name", machine.host)):
        usable = len(name) > 3 and not _COMMON_NAMES.fullmatch(name)
        # `name/model` is a hub id of an account with the same name, which is public.
        if usable and re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w-]|/\w)", line):
            yield Private("name", where, f"{what} {name}")


def _is_secret_value(value: Any) -> bool:
    return isinstance(value, str) and len(value.strip()) > 3 and not _PLACEHOLDER.match(value.strip())
