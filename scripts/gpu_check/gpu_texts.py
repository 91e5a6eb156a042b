"""Write the text that the GPU check trains on: English from installed packages. Needs no network and no GPU.

    make gpu-check-data   # or: python scripts/gpu_check/gpu_texts.py --directory runs/gpu/data

A document has the docstrings of one installed package, or one Wikipedia article of recipes/smollm2. Packages are held
out entirely, by the hash of their names; articles are split as in prepare.py. A training passage that shares 13
consecutive words with a held-out one is dropped. Half of the held-out documents are for choosing learning rates
(``validation.jsonl``), the other half is reported (``test.jsonl``).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, NamedTuple

from solar_plugins.data.ngrams import NgramIndex, Place

NGRAM = 13
ONE_IN = 8
"""One in this many packages is held out."""
MIN_CHARACTERS = 200
"""Shorter docstrings are skipped, because most only repeat the name."""
MAX_PACKAGE_CHARACTERS = 3_000_000
"""Limits each package to a tenth of the text."""
PASSAGES_OF_A_DOCUMENT = 8
PASSAGE_CHARACTERS = 2_000
"""Maximum length of a held-out passage, cut at the end of a line: about 512 tokens."""
TRAIN, VALIDATION, TEST, SOURCES = "train.jsonl", "validation.jsonl", "test.jsonl", "sources.json"


class Document(NamedTuple):
    """A text that is either trained on or held out.

    Args:
        name: Of the package or the article.
        kind: ``docstrings`` or ``articles``; losses are reported for each.
        passages: Its parts in order. Those that share words with a held-out text are dropped.
        held_out: From an existing split; None: by the hash of the name.
    """

    name: str
    kind: str
    passages: tuple[str, ...]
    held_out: bool | None = None


class Split(NamedTuple):
    """Rows of the three files, and the number of dropped passages."""

    train: list[dict[str, str]]
    validation: list[dict[str, str]]
    test: list[dict[str, str]]
    dropped: int


def is_held_out(document: Document) -> bool:
    """Whether a document is held out; depends only on its name, so it is the same on every machine."""
    if document.held_out is not None:
        return document.held_out
    return int(hashlib.sha256(document.name.encode()).hexdigest(), 16) % ONE_IN == 0


def split(documents: Iterable[Document]) -> Split:
    """Training rows and two held-out sets that share no document and no 13 consecutive words."""
    ordered = sorted(documents, key=lambda document: (document.kind, document.name))
    held_out = [document for document in ordered if is_held_out(document)]
    rows = [[_row(document, passage) for passage in shown_passages(document)] for document in held_out]
    halves = [[row for document_rows in rows[start::2] for row in document_rows] for start in (0, 1)]
    shown = [row["text"] for half in halves for row in half]
    index = NgramIndex(NGRAM, ((text, Place("held out", number)) for number, text in enumerate(shown, 1)))
    train, dropped = list[dict[str, str]](), 0
    for document in ordered:
        if is_held_out(document):
            continue
        kept = [passage for passage in document.passages if index.match(passage) is None]
        dropped += len(document.passages) - len(kept)
        if kept:
            train.append(_row(document, "\n\n".join(kept)))
    return Split(train, *halves, dropped)


def _row(document: Document, text: str) -> dict[str, str]:
    return {"text": text, "document": document.name, "kind": document.kind}


def shown_passages(document: Document) -> list[str]:
    """Up to `PASSAGES_OF_A_DOCUMENT` passages for evaluation, spread over the document."""
    cut = [passage[:PASSAGE_CHARACTERS].rpartition("\n")[0] or passage[:PASSAGE_CHARACTERS]
           for passage in document.passages]  # fmt: skip
    long_enough = [text for text in cut if len(text) >= MIN_CHARACTERS]
    count = min(PASSAGES_OF_A_DOCUMENT, len(long_enough))
    return [long_enough[number * len(long_enough) // count] for number in range(count)]


def docstring_documents() -> Iterator[Document]:
    """The docstrings of every installed package, without duplicates."""
    seen = set[str]()
    for name, files in sorted(_package_files().items()):
        passages, characters = list[str](), 0
        for passage in _docstrings(files):
            if passage not in seen and characters < MAX_PACKAGE_CHARACTERS:
                seen.add(passage)
                passages.append(passage)
                characters += len(passage)
        if passages:
            yield Document(name, "docstrings", tuple(passages))


def _package_files() -> dict[str, list[Path]]:
    """The Python files of each installed distribution, without tests."""
    files: dict[str, list[Path]] = {}
    for distribution in distributions():
        paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or [] if file.suffix == ".py"]
        files[distribution.metadata["Name"]] = sorted(path for path in paths if "tests" not in path.parts)
    return files


def _docstrings(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about invalid escapes in string literals
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a template, or another Python version
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= MIN_CHARACTERS:
                    yield text


def article_documents(directory: Path) -> Iterator[Document]:
    """The articles that ``recipes/smollm2/prepare.py`` wrote to a directory, with its split."""
    for file, held_out in (("wiki_train.jsonl", False), ("wiki_held_out.jsonl", True)):
        for number, row in enumerate(read_rows(directory / file)):
            name = f"{file.removesuffix('.jsonl')}[{number}]"
            passages = tuple(part for part in row["text"].split("\n") if part.strip())
            yield Document(name, "articles", (row["text"],) if held_out else passages, held_out)


def topic_documents() -> Iterator[Document]:
    """Python's language reference, as shown by ``help()``: a small dataset in every Python installation."""
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(name, "topics", tuple(part for part in text.split("\n\n") if part.strip()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_split(found: Split, directory: Path, sources: dict[str, Any]) -> None:
    """Write the three files and their sources atomically."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    described: dict[str, Any] = {"ngram": NGRAM, "dropped_passages": found.dropped, "files": {}}
    for name, rows in ((TRAIN, found.train), (VALIDATION, found.validation), (TEST, found.test)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (partial / name).write_text(text, encoding="utf-8")
        described["files"][name] = {
            "documents": len({row["document"] for row in rows}),
            "rows": len(rows),
            "characters": sum(len(row["text"]) for row in rows),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
    (partial / SOURCES).write_text(json.dumps(described | {"sources": sources}, indent=1) + "\n", encoding="utf-8")
    partial.rename(directory)


def _licence(distribution: Distribution) -> str:
    """A package's declared licence, in one line."""
    metadata = distribution.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if "License ::" in line]
    said = metadata.get("License-Expression") or ", ".join(classifiers) or (metadata.get("License") or "not stated")
    return said.strip().splitlines()[0][:80]


def _sources(found: Split) -> dict[str, Any]:
    """Version and licence of each package in a split, by name."""
    used = {row["document"] for rows in found[:3] for row in rows}
    return {
        name: {"version": distribution.version, "licence": _licence(distribution)}
        for distribution in sorted(distributions(), key=lambda found: found.metadata["Name"])
        if (name := distribution.metadata["Name"]) in used
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/gpu/data"))
    parser.add_argument("--articles", type=Path, default=Path("runs/smollm2/data"), help="folder written by prepare.py")
    options = parser.parse_args(arguments)
    if options.directory.exists():
        print(f"Nothing to do: {options.directory} exists.")
        return
    if not options.articles.is_dir():
        parser.exit(1, f"Error: {options.articles} is missing; run python recipes/smollm2/prepare.py first\n")
    found = split([*docstring_documents(), *article_documents(options.articles)])
    write_split(found, options.directory, _sources(found))
    for name, rows in (("train", found.train), ("validation", found.validation), ("test", found.test)):
        print(f"{name}: {len(rows)} rows, {sum(len(row['text']) for row in rows) / 1e6:.2f} M characters")
    print(f"{found.dropped} passages shared {NGRAM} consecutive words with a held-out one and were dropped")


if __name__ == "__main__":
    main()
