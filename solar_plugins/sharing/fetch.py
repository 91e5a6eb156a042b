"""`solar recipes fetch`: the recipes in a model repository or a folder, with a note of where each one comes from.

Only small text files are downloaded, and a bundle's pictures. Nothing that is fetched is executed or imported.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.lineage.record import LINEAGE_FILE
from solar_plugins.lineage.record import read as read_lineage
from solar_plugins.sharing.bundle import CARD, MANIFEST, MAX_PICTURE_BYTES, PICTURES, read_bundle
from solar_plugins.sharing.hub import Remote, download, list_files
from solar_plugins.sharing.hub_session import endpoint
from solar_plugins.sharing.sources import ORIGIN, YAML_FILES, kind_of
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.untrusted import (
    MAX_YAML_CHARACTERS,
    duplicate_keys,
    is_portable_path,
    leads_out,
    parse_json_object,
    parse_yaml,
    read_json_object,
)
from solar_plugins.tables import lines, table
from solar_plugins.text import format_bytes, printable

MAX_FILES = 200
"""YAML files that are read; a bundle may have more."""
MAX_BYTES = 50_000_000
"""Of all files together."""
MAX_LISTED = 100_000
"""Files in a local folder."""
MAX_BLOCKS = 50
"""YAML blocks of a card that are read."""
MAX_ROWS = 40
"""Files that the table says were passed over."""
AXOLOTL_KEYS = {
    *("adapter", "datasets", "gradient_accumulation_steps", "learning_rate", "lr_scheduler", "max_steps", "solar"),
    *("micro_batch_size", "num_epochs", "optimizer", "output_dir", "plugins", "pretraining_dataset", "rl"),
    *("sequence_len", "val_set_size"),
}
"""A YAML file with ``base_model`` and two of these is taken as an Axolotl recipe."""


class Found(NamedTuple):
    """Something to write.

    Args:
        path: Its path in the new folder.
        kind: What it is: ``recipe``, ``merge``, ``mixture``, ``pipeline``, ``lineage``, ``bundle`` ...
        source: The file that it comes from.
        content: Its bytes.
        note: What a person should know about it.
    """

    path: str
    kind: str
    source: str
    content: bytes
    note: str = ""


@dataclass
class Fetched:
    """What was found.

    Args:
        source: ``ORG/MODEL``, or the name of a folder.
        remote: The revision on the Hub; None for a folder.
        found: What is written.
        passed_over: Files that are not written, with the reason.
    """

    source: str
    remote: Remote | None
    found: list[Found] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where files come from: their sizes, and how to read some of them."""

    sizes: Mapping[str, int]
    read: Callable[[Iterable[str]], dict[str, bytes]]


def fetch(source: str, output: Path | None = None) -> tuple[Fetched, Path]:
    """Find the recipes in a repository or a folder, and write them.

    Args:
        source: A folder, or ``ORG/MODEL`` with an optional ``@revision``.
        output: The folder to write; default: the name of the model.

    Returns:
        What was found, and the folder.

    Raises:
        ArgsError: Nothing was found, or a file exists with other content; nothing is written then.
        HubError: The repository cannot be read.
    """
    folder = Path(source)
    if source and folder.is_dir():
        fetched, place = _of_folder(folder)
        output = output or Path(f"{folder.resolve().name}-recipes")
        if output.resolve().is_relative_to(folder.resolve()):
            raise ArgsError(f"{output}: is in {folder}, where the recipes come from; give another folder with --output")
    else:
        fetched, place = _of_repository(source)
        output = output or Path(fetched.source.rpartition("/")[2])
    _find(fetched, place)
    if not fetched.found:
        raise ArgsError(
            f"{printable(source)}: has no recipe, merge, mixture, pipeline, lineage or bundle (looked at "
            f"{len(place.sizes):,} files). {_passed_over_text(fetched)}Give a repository or a folder with some"
        )
    _write(fetched, output)
    return fetched, output


def as_text(fetched: Fetched, output: Path) -> str:
    """The table of what was written, and what was passed over and why."""
    at = f" at {fetched.remote.commit[:12]}" if fetched.remote else ""
    rows = [[found.path, found.kind, found.source, found.note] for found in fetched.found]
    parts = [
        f"{fetched.source}{at}: {len(rows)} files written to {output}",
        "",
        *lines(table(["file", "what", "from", "note"], _plain(rows), left=(0, 1, 2, 3))),
    ]
    if fetched.passed_over:
        skipped = [list(row) for row in fetched.passed_over[:MAX_ROWS]]
        more = len(fetched.passed_over) - len(skipped)
        parts += ["", *lines(table(["passed over", "why"], _plain(skipped), left=(0, 1)))]
        parts += [f"and {more:,} more"] if more else []
    is_bundle = any(found.kind == "bundle" for found in fetched.found)
    follow = f"\nThen: solar recipes reproduce {output}" if is_bundle else ""
    return printable("\n".join([*parts, "", f"Nothing was run. Next: solar recipes check {output}{follow}"]))


def as_json(fetched: Fetched, output: Path) -> dict[str, Any]:
    """The same as JSON-ready values."""
    return {
        "output": str(output),
        "origin": _origin(fetched),
        "passed_over": [{"file": name, "why": why} for name, why in fetched.passed_over],
    }


def _plain(rows: Iterable[list[str]]) -> list[list[str]]:
    return [[" ".join(printable(cell).split())[:160] for cell in row] for row in rows]


# ---- where files come from


def _of_folder(folder: Path) -> tuple[Fetched, _Place]:
    fetched = Fetched(folder.resolve().name, None)
    sizes: dict[str, int] = {}
    for path in _files_below(folder):
        name = path.relative_to(folder).as_posix()
        if leads_out(path, folder):
            fetched.passed_over.append((name, "a link out of the folder"))
        elif path.is_file():
            sizes[name] = path.stat().st_size
            if len(sizes) > MAX_LISTED:
                raise ArgsError(f"{folder}: more than {MAX_LISTED:,} files; give the folder of a model or of recipes")
        else:
            fetched.passed_over.append((name, "not a regular file"))

    def read(names: Iterable[str]) -> dict[str, bytes]:
        return {name: (folder / name).read_bytes() for name in names}

    return fetched, _Place(sizes, read)


def _files_below(folder: Path) -> Iterator[Path]:
    """Files that may hold recipes, without those in hidden folders. Links to folders are not followed."""
    for parent, folders, names in folder.walk():
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (parent / name for name in sorted(names))


def _of_repository(source: str) -> tuple[Fetched, _Place]:
    repo, _, revision = source.partition("@")
    if repo.startswith((".", "/", "~")) or repo.count("/") != 1:
        raise ArgsError(
            f"{printable(source)!r} is neither a folder (seen from {Path.cwd()}) nor the name of a model on the Hub; "
            "expected a folder, ORG/MODEL or ORG/MODEL@REVISION"
        )
    listing = list_files(repo, revision or None)
    fetched = Fetched(repo, listing.remote)
    fetched.passed_over += [(name, "not the path of a file") for name in listing.refused]
    if listing.from_cache:
        fetched.passed_over.append(("", "the Hub is offline: only files in the cache were looked at"))

    def read(names: Iterable[str]) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in download(listing, names, MAX_BYTES).items()}

    return fetched, _Place({file.path: file.num_bytes for file in listing.files}, read)


# ---- what they are


def _find(fetched: Fetched, place: _Place) -> None:
    portable = {name: size for name, size in place.sizes.items() if is_portable_path(name)}
    fetched.passed_over += [(name, "a name that not every system can write") for name in place.sizes.keys() - portable]
    in_bundles = set[str]()
    for manifest in sorted(name for name in portable if Path(name).name == MANIFEST):
        in_bundles |= _find_bundle(fetched, place, manifest, portable)
    names = _wanted(fetched, {name: size for name, size in portable.items() if name not in in_bundles})
    texts = place.read(names)
    seen: dict[str, str] = {}
    for name in names:
        if Path(name).name == CARD:
            continue
        if Path(name).name == LINEAGE_FILE:
            _find_lineage(fetched, seen, name, texts[name])
        else:
            _find_recipe(fetched, seen, name, name, texts[name])
    for name in names:  # Last: a recipe that is a file too keeps that file's name.
        if Path(name).name == CARD:
            _find_in_card(fetched, seen, name, texts[name])
    _refuse_collisions(fetched)


def _wanted(fetched: Fetched, sizes: Mapping[str, int]) -> list[str]:
    """The files to read, the highest folders first."""
    names: list[str] = []
    for name in sorted(sizes, key=lambda name: (name.count("/"), name)):
        path = Path(name)
        is_config = path.name.startswith("axolotl_config") and path.suffix in (*YAML_FILES, ".json", "")
        if path.suffix not in YAML_FILES and path.name not in (CARD, LINEAGE_FILE) and not is_config:
            continue
        if any(part.startswith(".") for part in path.parts):
            fetched.passed_over.append((name, "hidden"))
        elif sizes[name] > MAX_YAML_CHARACTERS:
            fetched.passed_over.append((name, f"{format_bytes(sizes[name])}, too large for a recipe"))
        elif len(names) == MAX_FILES:
            fetched.passed_over.append((name, f"more than {MAX_FILES} YAML files"))
        else:
            names.append(name)
    return names


def _find_bundle(fetched: Fetched, place: _Place, manifest: str, sizes: Mapping[str, int]) -> set[str]:
    """Find a bundle, which is complete and valid or an error; return its files."""
    top = manifest.removesuffix(MANIFEST)
    if sizes[manifest] > MAX_YAML_CHARACTERS:
        raise ArgsError(f"{manifest}: {sizes[manifest]:,} bytes, too large for a bundle; ask its author for another")
    text = place.read([manifest])[manifest]
    listed = parse_json_object(Path(manifest), text, strict=True, error=ArgsError).get("files")
    names = [f"{top}{name}" for name in listed] if isinstance(listed, dict) else []
    names = [name for name in (*names, f"{top}{CARD}") if name in sizes and name != manifest]
    for name in names:
        limit = MAX_PICTURE_BYTES if name.removeprefix(top).startswith(PICTURES) else MAX_YAML_CHARACTERS
        if sizes[name] > limit:
            raise ArgsError(f"{name}: {sizes[name]:,} bytes, expected at most {limit:,} in a bundle; ask its author")
    contents = {manifest: text} | place.read(dict.fromkeys(names))
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in contents.items():
            path = Path(scratch, name.removeprefix(top))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            bundle = read_bundle(Path(scratch))
        except SolarError as error:
            raise ArgsError(str(error).replace(f"{scratch}/", top).replace(scratch, top or "the bundle")) from None
    for name, content in contents.items():
        inside = kind_of(bundle.contents.get(name.removeprefix(top))) or "of the bundle"
        kind = "bundle" if name == manifest else inside
        note = f"{len(bundle.manifest.stages)} stages: {bundle.manifest.name}" if name == manifest else ""
        fetched.found.append(Found(name, kind, name, content, note))
    return set(contents)


def _find_lineage(fetched: Fetched, seen: dict[str, str], name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, LINEAGE_FILE).write_bytes(content)
        try:
            lineage = read_lineage(Path(scratch))
        except SolarError as error:
            fetched.passed_over.append((name, str(error).replace(f"{scratch}/", "")))
            return
    assert lineage is not None
    bases = ", ".join(base.short for base in lineage.bases) or "an unknown base"
    note = " -> ".join([bases, *(stage.kind for stage in lineage.stages)])
    fetched.found.append(Found(name, "lineage", name, content, note))
    folder = name.removesuffix(LINEAGE_FILE)
    for number, stage in enumerate(lineage.stages, 1):
        if stage.recipe is not None:
            path = f"{folder}lineage/{number}-{stage.kind}.yml"
            note = f"stage {number}, which wrote {stage.result.short}"
            _find_recipe(fetched, seen, path, name, stage.recipe.encode(), note)


def _find_recipe(
    fetched: Fetched, seen: dict[str, str], path: str, source: str, content: bytes, note: str = ""
) -> None:
    try:
        text = content.decode()
        parsed = parse_yaml(text, source)
        twice = duplicate_keys(text)
    except UnicodeDecodeError:
        fetched.passed_over.append((source, "not UTF-8"))
        return
    except SolarError as error:
        fetched.passed_over.append((source, str(error).removeprefix(f"{source}: ")))
        return
    kind = _kind(parsed)
    if kind is None:
        fetched.passed_over.append((source, "no recipe, merge, mixture or pipeline"))
        return
    same = repr(parsed)
    if same in seen:
        fetched.passed_over.append((source, f"the same {kind} as {seen[same]}"))
        return
    seen[same] = path
    base = parsed.get("base_model")
    note = note or (f"base {base}" if isinstance(base, str) else "")
    fetched.found.append(Found(path, kind, source, content, f"set twice: {', '.join(twice)}" if twice else note))


def _kind(content: Any) -> str | None:
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return None
    if "experts" in content and ("gate_mode" in content or "base_model" in content):
        return "merge"
    kind = kind_of(content)
    if kind == "recipe" and len(AXOLOTL_KEYS & content.keys()) < 2:
        return None
    stages = content.get("stages")
    if kind == "pipeline" and not all(isinstance(stage, Mapping) and "name" in stage for stage in stages or [0]):
        return None
    return kind


def _find_in_card(fetched: Fetched, seen: dict[str, str], name: str, content: bytes) -> None:
    blocks = _yaml_blocks(content.decode(errors="replace"))
    if len(blocks) > MAX_BLOCKS:
        fetched.passed_over.append((name, f"{len(blocks):,} YAML blocks; only the first {MAX_BLOCKS} were read"))
    folder, taken = name.removesuffix(CARD), {found.path for found in fetched.found}
    for number, text in enumerate(blocks[:MAX_BLOCKS], 1):
        path = f"{folder}card-{number}.yml"
        while path in taken:
            path = f"{path.removesuffix('.yml')}-card.yml"
        _find_recipe(fetched, seen, path, name, text.encode())


def _yaml_blocks(card: str) -> list[str]:
    """The YAML code blocks of a card. A recipe in Axolotl's form ends at the last fence before ``</details>``."""
    found: list[str] = []
    rest = iter(card.replace("\r\n", "\n").split("\n"))
    in_details = False
    for line in rest:
        plain = line.strip()
        in_details = in_details or "See axolotl config" in line
        if not plain.startswith(("```", "~~~")):
            continue
        language = plain.lstrip(plain[0])
        fence, block, closed = plain.removesuffix(language), list[str](), 0
        for inner in rest:
            end = inner.strip()
            if in_details and end.startswith("</details>"):
                break
            if end.startswith(fence) and not end.strip(fence[0]):
                closed = len(block)
                if not in_details:
                    break
            block.append(inner)
        if language.strip().lower() in ("yaml", "yml") and block[:closed]:
            found.append("\n".join(block[:closed]) + "\n")
        in_details = False
    return found


def _refuse_collisions(fetched: Fetched) -> None:
    """Keep one of several paths that are the same on a system that ignores case, or a file and a folder of one name."""
    taken: dict[str, str] = {}
    folders: set[str] = set()
    kept = []
    for found in fetched.found:
        low = found.path.casefold()
        parents = {low.rsplit("/", depth)[0] for depth in range(1, low.count("/") + 1)}
        if low == ORIGIN.casefold() or low in taken or low in folders or parents & taken.keys():
            fetched.passed_over.append((found.path, f"the same name as {taken.get(low, 'another file')}"))
            continue
        taken[low] = found.path
        folders |= parents
        kept.append(found)
    fetched.found[:] = kept


# ---- what is written


def _write(fetched: Fetched, output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ArgsError(f"{output}: is a file, expected a folder or a new name; choose another one with --output")
    origin = _origin(fetched)
    contents = {found.path: found.content for found in fetched.found}
    for name, content in contents.items():
        path = output / name
        if leads_out(path, output) or (path.exists() and (not path.is_file() or path.read_bytes() != content)):
            raise ArgsError(
                f"{printable(str(path))}: exists with other content; nothing was written. Move it away, or choose "
                "another folder with --output"
            )
    note = output / ORIGIN
    if note.exists() and read_json_object(note, error=ArgsError) != origin:
        raise ArgsError(
            f"{note}: says that the recipes there come from elsewhere, or from another commit; nothing was written. "
            "Choose another folder with --output"
        )
    for name, content in contents.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(output / name, content)
    if not note.exists():
        write_file(note, f"{json.dumps(origin, indent=1, ensure_ascii=True)}\n".encode())


def _origin(fetched: Fetched) -> dict[str, Any]:
    remote = fetched.remote
    files = {
        found.path: {"kind": found.kind, "from": found.source, "sha256": hashlib.sha256(found.content).hexdigest()}
        for found in sorted(fetched.found)
    }
    where = {"hub": endpoint(), "commit": remote.commit} if remote else {}
    return {"format": 1, "source": fetched.source, **where, "files": files}


def _passed_over_text(fetched: Fetched) -> str:
    shown = "; ".join(f"{name}: {why}" for name, why in fetched.passed_over[:5])
    return f"Passed over: {printable(shown)[:600]}. " if shown else ""
