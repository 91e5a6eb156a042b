import json
import re

from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.data.mixture_report import (
    MixtureReport,
    SetReport,
    as_text,
    finished_report,
    foreign_files,
    write_report,
)

ARGS = MixtureArgs.model_validate(
    {
        "output": "out",
        "sets": {
            "orca": {"path": "o.jsonl", "text_columns": "q", "rows": 60, "task_column": "t", "exclude_tasks": ["x"]},
            "math": {"path": "m.jsonl", "text_columns": "q", "rows": 20},
        },
        "decontaminate": {"against": [{"path": "b.jsonl", "columns": "q"}, {"path": "c.txt"}]},
    }
)
INPUTS = {"o.jsonl": (10, "a1"), "m.jsonl": (30, "b2"), "b.jsonl": (1, "c3"), "c.txt": (3, "d4")}


def a_set(read, missing, task, overlap, not_drawn, kept, **others):
    dropped = {"unreadable": 0, "missing_text": missing, "excluded_task": task, "benchmark_overlap": overlap}
    return SetReport(
        rows_read=read, dropped=dropped, not_drawn=not_drawn, rows_kept=kept, **({"file_bytes": 3} | others)
    )


REPORT = MixtureReport(
    ARGS.model_dump(mode="json"),
    INPUTS,
    {
        "orca": a_set(1200, 1, 20, 7, 1112, 60, rows_asked=60, rows_without_task=5, benchmark_matches={"b.jsonl": 7}),
        "math": a_set(20, 0, 0, 0, 0, 15, rows_asked=20, rows_without_task=None, benchmark_matches={}),
    },
    3000,
    {"b.jsonl": {"ngrams": 90, "inside": 7, "equal": 2_003}, "c.txt": {"ngrams": 5, "inside": 0, "equal": 0}},
    0.5,
)


def written(folder):
    for name in ("orca", "math"):
        (folder / f"{name}.jsonl").write_text("{}\n")
    record = {"reason": "benchmark_overlap", "file": "o.jsonl", "row": 9, "column": "q", "value": "a b c"}
    other = {"reason": "missing_text", "file": "o.jsonl", "row": 1, "column": "q", "value": "None"}
    record |= {"benchmark_file": "b.jsonl", "benchmark_row": 2}
    (folder / "dropped.jsonl").write_text(json.dumps(other) + "\n" + json.dumps(record) + "\n")
    write_report(folder / "report.json", REPORT)
    return folder


def test_the_summary_has_rows_shares_and_reasons(tmp_path):
    written(tmp_path)
    text = as_text(REPORT, tmp_path, made=True)
    for name, cells in (("orca", "1,200 0 1 20 7 1,112 60 80.0%"), ("math", "20 0 0 0 0 0 15 20.0%")):
        assert [line.split()[1:] for line in text.splitlines() if line.startswith(f"{name} ")] == [cells.split()]
    for fact in (
        r"1,220 rows in 0\.5 s, 2,440 rows/s",
        r"orca: 5 rows .*exclude_tasks",
        r"math: 15 .*20 .*\(no more are left\)",
        r"3,000 n-grams of 13 words",
        r"^ +7  b\.jsonl$",
        r"^ +0  c\.txt$",
        r"o\.jsonl row 9 \(q\) and b\.jsonl row 2: a b c",
        r"b\.jsonl: 2,010 of 2,100 rows .* 13 words",
        r"^ +7 .*8 words or more",
        r"2,003 .*fewer than 8 words",
        rf"{tmp_path / 'dropped.jsonl'} \(28 rows\)",
    ):
        assert re.search(fact, text, re.MULTILINE), fact
    assert "up to date" in as_text(REPORT, tmp_path, made=False)


def test_a_mixture_without_benchmarks_says_so(tmp_path):
    plain = MixtureReport(REPORT.mixture | {"decontaminate": None}, INPUTS, REPORT.sets, 0, {}, 1.0)
    assert "not decontaminated" in as_text(plain, tmp_path, made=True)


def test_it_is_read_back(tmp_path):
    assert finished_report(written(tmp_path), ARGS, INPUTS) == REPORT


def test_other_options_and_inputs_are_another_mixture(tmp_path):
    written(tmp_path)
    assert finished_report(tmp_path, ARGS.model_copy(update={"keep_shares": True}), INPUTS) is None
    assert finished_report(tmp_path, ARGS, INPUTS | {"b.jsonl": (1, 3)}) is None


def test_damaged_reports_are_ignored(tmp_path):
    text = (written(tmp_path) / "report.json").read_text()
    good = json.loads(text)
    for damaged in ("", "{", "[]", "5", "{}", json.dumps(good | {"format_version": 0}), json.dumps(good | {"sets": 5})):
        (tmp_path / "report.json").write_text(damaged)
        assert finished_report(tmp_path, ARGS, INPUTS) is None
    (tmp_path / "report.json").write_text(json.dumps(good))
    (tmp_path / "math.jsonl").write_text("{}")
    assert finished_report(tmp_path, ARGS, INPUTS) is None, "a file of another size"


def test_foreign_files(tmp_path):
    assert foreign_files(tmp_path / "none") == []
    assert foreign_files(tmp_path) == []
    assert foreign_files(written(tmp_path)) == []
    (tmp_path / "note.txt").touch()
    assert foreign_files(tmp_path) == ["note.txt"]
    (tmp_path / "report.json").write_text("{")
    assert foreign_files(tmp_path) == ["dropped.jsonl", "math.jsonl", "note.txt", "orca.jsonl", "report.json"]
    assert foreign_files(tmp_path / "note.txt") == ["note.txt"]
