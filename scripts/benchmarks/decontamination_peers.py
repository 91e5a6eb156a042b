"""Runs another project's decontamination over the same rows: ``decontamination_peers.py TOOL FOLDER WORKERS ROWS OUT``.

``datatrove``: its n-gram filter in a pipeline from JSON Lines to JSON Lines. ``janitor``: lm-eval's `Janitor`, for
which no pipeline exists: a loop over the rows. ``janitor C++`` is the same with the module that lm-eval's repository
has the source of, compiled. ``OUT`` gets the numbers of the dropped rows, and of those that the tool failed on.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from itertools import islice
from multiprocessing import Pool
from pathlib import Path
from typing import Any

N = 13


def questions(folder: Path) -> list[str]:
    with (folder / "bench.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["question"] for line in file]


def datatrove(folder: Path, workers: int, work: Path) -> list[int]:
    """Its indexer imports lighteval even for questions from a file, so its own hashing is called without `run`."""
    import numpy as np
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter, NGramsDecontIndexer
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = NGramsDecontConfig(n_grams=N)
    indexer = object.__new__(NGramsDecontIndexer)
    indexer.__init__(str(work / "index"), config=config)  # type: ignore[misc]
    hashes = {one for text in questions(folder) for one in indexer.compute_hashes(text)}
    (work / "index").mkdir(parents=True, exist_ok=True)
    np.array(list(hashes), dtype=config.hash_config.np_descr).tofile(work / "index" / "questions.index.hashes")
    excluded = JsonlWriter(str(work / "excluded"), compression=None)
    steps = [
        JsonlReader(str(folder / "shards")),
        NGramsDecontFilter(str(work / "index"), config=config, exclusion_writer=excluded),
        JsonlWriter(str(work / "kept"), compression=None),
    ]
    LocalPipelineExecutor(steps, tasks=workers, workers=workers, logging_dir=str(work / "logs")).run()
    found = []
    for path in (work / "excluded").rglob("*.jsonl"):
        found += [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(map(int, found))


_janitor: Any = None
failed: list[int] = []


def janitor(folder: Path, workers: int, work: Path) -> list[int]:
    """A row is dropped if any text is cut out of it; the windows are 0, since they do not change what is found."""
    global _janitor
    from lm_eval.decontamination.janitor import JANITOR_CPP, Janitor

    assert ("C++" in sys.argv[1]) == JANITOR_CPP, "janitor_util must be importable for C++, and only for it"
    _janitor = Janitor(ngram_n=N, window_to_remove=0, too_dirty_cutoff=1, minimum_slice_length=0)
    for text in questions(folder):
        with suppress(UnicodeDecodeError):  # C++ cuts between the bytes of a character.
            _janitor.register_contaminant(text)
    dropped: list[int] = []
    with (folder / "rows.jsonl").open(encoding="utf-8") as file, (work / "kept.jsonl").open("w") as kept:
        lines = islice(file, int(sys.argv[4]))
        if workers == 1:
            results = map(_cleaned, lines)
            _write(results, kept, dropped)
        else:
            with Pool(workers) as pool:
                _write(pool.imap(_cleaned, lines, chunksize=500), kept, dropped)
    return dropped


def _cleaned(line: str) -> tuple[int, str, bool | None]:
    """The row's number, the row, and whether it is contaminated; None if the tool fails on it."""
    row = json.loads(line)
    try:
        return row["id"], line, _janitor.clean(row["text"]) != [row["text"]]
    except UnicodeDecodeError:
        return row["id"], line, None


def _write(results: Any, kept: Any, dropped: list[int]) -> None:
    for number, line, dirty in results:
        if dirty is None:
            failed.append(number)
        if dirty:
            dropped.append(number)
        else:
            kept.write(line)


if __name__ == "__main__":
    tool, folder, workers, _, out = sys.argv[1:]
    work = Path(out).parent / "work"
    work.mkdir()
    run = datatrove if tool == "datatrove" else janitor
    dropped = run(Path(folder), int(workers), work)
    Path(out).write_text(json.dumps({"dropped": dropped, "failed": failed}))
