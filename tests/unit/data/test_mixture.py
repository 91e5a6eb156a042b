import datetime
import decimal
import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.data import mixture as mixture_module
from solar_plugins.data import row_files
from solar_plugins.data.mixture import choose_rows, make_mixture, rows_with_shares
from solar_plugins.data.mixture_report import as_text
from solar_plugins.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two sets, a benchmark, and a mixture file of them; the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"question {i}", "r": f"reply {i}", "task": f"t{i % 10}"} for i in range(100)]
    rows[3]["r"] = "A: One two, three four five."
    rows[4] = {"q": "no reply", "task": "t4"}
    write_lines("orca1.jsonl", rows[:60])
    write_lines("orca2.jsonl", rows[60:])
    (tmp_path / "math.json").write_text(json.dumps([{"text": f"sum {i}"} for i in range(30)], indent=2))
    write_lines("bench.jsonl", [{"question": "nothing of it here"}, {"question": "Two three four?"}])
    save(MIXTURE)
    return tmp_path


MIXTURE = {
    "output": "made/mix",
    "sets": {
        "orca": {
            "path": ["orca1.jsonl", "orca2.jsonl"],
            "rows": 20,
            "seed": 5,
            "text_columns": ["q", "r"],
            "task_column": "task",
            "exclude_tasks": ["t7", "t8"],
        },
        "math": {"path": "math.json", "text_columns": "text"},
    },
    "decontaminate": {"ngram": 3, "against": [{"path": "bench.jsonl", "columns": "question"}]},
}


def write_lines(path, rows):
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def save(mixture):
    with open("mix.yml", "w") as file:
        yaml.safe_dump(mixture, file)


def with_set(**changes):
    return MIXTURE | {"sets": {"orca": MIXTURE["sets"]["orca"] | changes}}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def test_a_mixture_writes_its_sets_and_a_report(folder):
    report, made = make_mixture(folder / "mix.yml")
    assert made
    out = folder / "made" / "mix"
    assert sorted(path.name for path in out.iterdir()) == ["dropped.jsonl", "math.jsonl", "orca.jsonl", "report.json"]
    assert lines(out / "math.jsonl") == [{"text": f"sum {i}"} for i in range(30)]
    numbers = [int(row["q"].split()[1]) for row in lines(out / "orca.jsonl")]
    assert numbers == sorted(set(numbers)), "in the order of the files"
    assert len(numbers) == 20
    assert not {3, 4} & set(numbers)
    assert all(number % 10 not in (7, 8) for number in numbers)
    dropped = lines(out / "dropped.jsonl")
    assert dropped[0] == {
        "set": "orca",
        "file": "orca1.jsonl",
        "row": 4,
        "reason": "benchmark_overlap",
        "column": "r",
        "value": "two three four",
        "benchmark_file": "bench.jsonl",
        "benchmark_row": 2,
    }
    assert dropped[1] == {
        "set": "orca",
        "file": "orca1.jsonl",
        "row": 5,
        "reason": "missing_text",
        "column": "r",
        "value": "the column is missing",
    }
    tasks = [(one["file"], one["row"]) for one in dropped if one["reason"] == "excluded_task"]
    assert tasks == [("orca1.jsonl" if i < 60 else "orca2.jsonl", i % 60 + 1) for i in range(100) if i % 10 in (7, 8)]
    orca = json.loads((out / "report.json").read_text())["sets"]["orca"]
    assert orca == {
        "rows_read": 100,
        "dropped": {"unreadable": 0, "missing_text": 1, "excluded_task": 20, "benchmark_overlap": 1},
        "not_drawn": 58,
        "rows_kept": 20,
        "rows_asked": 20,
        "rows_without_task": 0,
        "benchmark_matches": {"bench.jsonl": 1},
        "file_bytes": (out / "orca.jsonl").stat().st_size,
    }
    assert report.sets["math"].rows_kept == 30


@pytest.mark.parametrize("block_bytes", [1, 77, 2_000_000])
@pytest.mark.parametrize("processes", [1, 2])
def test_block_size_and_processes_do_not_change_the_output(folder, monkeypatch, block_bytes, processes):
    make_mixture(folder / "mix.yml")
    expected = content(folder / "made" / "mix")
    monkeypatch.setattr(row_files, "BLOCK_BYTES", block_bytes)
    save(MIXTURE | {"output": "other"})
    make_mixture(folder / "mix.yml", processes)
    assert content(folder / "other") == expected


def test_one_file_and_two_give_the_same_rows(folder):
    make_mixture(folder / "mix.yml")
    (folder / "orca.jsonl").write_bytes((folder / "orca1.jsonl").read_bytes() + (folder / "orca2.jsonl").read_bytes())
    save(with_set(path="orca.jsonl") | {"output": "other"})
    make_mixture(folder / "mix.yml")
    assert (folder / "other/orca.jsonl").read_bytes() == (folder / "made/mix/orca.jsonl").read_bytes()


def test_an_unchanged_mixture_is_reused(folder):
    first, _ = make_mixture(folder / "mix.yml")
    before = (folder / "made/mix").stat().st_ino
    again, made = make_mixture(folder / "mix.yml")
    assert not made
    assert again == first
    assert (folder / "made/mix").stat().st_ino == before


@pytest.mark.parametrize(
    "change",
    [
        lambda: save(with_set(seed=6)),
        lambda: write_lines("bench.jsonl", [{"question": "question 9 and"}]),
        lambda: Path("made/mix/orca.jsonl").write_text("{}\n"),
        lambda: Path("made/mix/orca.jsonl").write_text(""),
        lambda: Path("made/mix/math.jsonl").unlink(),
        lambda: Path("made/mix/dropped.jsonl").unlink(),
    ],
)
def test_a_changed_mixture_is_rebuilt(folder, change):
    make_mixture(folder / "mix.yml")
    change()
    report, made = make_mixture(folder / "mix.yml")
    assert made
    assert len(lines(folder / "made/mix/orca.jsonl")) == report.sets["orca"].rows_kept == 20
    assert [path.name for path in (folder / "made").iterdir()] == ["mix"], "nothing is left beside it"


def test_two_concurrent_runs_build_once(folder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(make_mixture(folder / "mix.yml", 1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first, first_made), (second, second_made) = results
    assert first == second
    assert {first_made, second_made} == {True, False}
    assert [path.name for path in (folder / "made").iterdir()] == ["mix"]


def test_shares_are_kept_when_a_dataset_has_too_few_rows(folder):
    sets = {"orca": MIXTURE["sets"]["orca"] | {"rows": 40}, "math": MIXTURE["sets"]["math"] | {"rows": 60}}
    save(MIXTURE | {"sets": sets})
    plain, _ = make_mixture(folder / "mix.yml")
    assert {name: one.rows_kept for name, one in plain.sets.items()} == {"orca": 40, "math": 30}
    save(MIXTURE | {"sets": sets, "keep_shares": True})
    shared, _ = make_mixture(folder / "mix.yml")
    assert {name: one.rows_kept for name, one in shared.sets.items()} == {"orca": 20, "math": 30}


def test_a_share_without_a_row(folder):
    write_lines("one.jsonl", [{"text": "x"}])
    sets = {
        "a": {"path": "one.jsonl", "rows": 1000, "text_columns": "text"},
        "math": MIXTURE["sets"]["math"] | {"rows": 5},
    }
    save(MIXTURE | {"sets": sets, "keep_shares": True})
    with pytest.raises(DataError, match=r"keep_shares: math would have no row.*a 1 of 1,000, math 30 of 5"):
        make_mixture(folder / "mix.yml")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: save(with_set(path="gone.jsonl")), r"gone\.jsonl: cannot be read \(no such file\)"),
        (lambda: save(with_set(path="x.csv")), r"x\.csv: unknown .*\.jsonl"),
        (
            lambda: [Path(f"orca{i}.jsonl").write_bytes(b"\xff\n" * 3) for i in (1, 2)],
            r"none of 6 rows can be read; orca1\.jsonl row 1: the row is not UTF-8",
        ),
        (
            lambda: save(with_set(text_columns=["q", "response"])),
            r"sets\.orca: orca1.*no row is left of 100 \(100 missing_text\).*columns of the first row are q, r, task",
        ),
        (lambda: save(with_set(task_column="tusk")), r"none of 100 rows .*'tusk' \(task_column\).* q, r, task"),
        (
            lambda: [write_lines(f"orca{i}.jsonl", []) for i in (1, 2)],
            r"sets\.orca: orca1\.jsonl, orca2\.jsonl: no rows",
        ),
        (lambda: write_lines("bench.jsonl", [{"q": "x"}]), r"bench\.jsonl: row 1 has no text in the column 'question'"),
    ],
)
def test_errors_leave_the_folder_unchanged(folder, damage, message):
    make_mixture(folder / "mix.yml")
    before = content(folder / "made/mix")
    damage()
    with pytest.raises(DataError, match=message):
        make_mixture(folder / "mix.yml")
    assert content(folder / "made/mix") == before
    assert [path.name for path in (folder / "made").iterdir()] == ["mix"]


def test_an_input_that_changes_while_it_is_read(folder, monkeypatch):
    choose = mixture_module.choose_rows

    def choose_and_change(*arguments):
        with open("orca1.jsonl", "a") as file:
            file.write('{"q": "new", "r": "row"}\n')
        return choose(*arguments)

    monkeypatch.setattr(mixture_module, "choose_rows", choose_and_change)
    with pytest.raises(DataError, match=r"mix\.yml: an input changed .*nothing was written"):
        make_mixture(folder / "mix.yml")
    assert list((folder / "made").iterdir()) == []


def test_a_full_disk(folder, monkeypatch):
    make_mixture(folder / "mix.yml")
    before = content(folder / "made/mix")
    save(with_set(seed=7))

    def full(*_):
        raise OSError(28, "No space left on device", "made")

    monkeypatch.setattr(mixture_module, "write_report", full)
    with pytest.raises(DataError, match=r"made/mix: the mixture could not be written \(No space left"):
        make_mixture(folder / "mix.yml")
    assert content(folder / "made/mix") == before
    assert [path.name for path in (folder / "made").iterdir()] == ["mix"]


def test_a_folder_with_foreign_files_is_not_touched(folder):
    (folder / "made/mix").mkdir(parents=True)
    (folder / "made/mix/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"output: made/mix .*\(thesis\.tex\)"):
        make_mixture(folder / "mix.yml")
    assert (folder / "made/mix/thesis.tex").read_text() == "years of work"


def test_foreign_files_and_inputs_in_our_folder_are_not_touched(folder):
    make_mixture(folder / "mix.yml")
    (folder / "made/mix/note.txt").write_text("mine")
    save(with_set(seed=8))
    with pytest.raises(DataError, match=r"note\.txt"):
        make_mixture(folder / "mix.yml")
    (folder / "made/mix/note.txt").unlink()
    save(with_set(path="made/mix/orca.jsonl"))
    with pytest.raises(DataError, match=r"output: .*the input made/mix/orca\.jsonl"):
        make_mixture(folder / "mix.yml")


def test_a_link_to_the_folder_stays_a_link(folder):
    (folder / "elsewhere").mkdir()
    (folder / "made").mkdir()
    (folder / "made/mix").symlink_to(folder / "elsewhere")
    for seed in (1, 2):
        save(with_set(seed=seed))
        make_mixture(folder / "mix.yml")
        assert (folder / "made/mix").is_symlink()
        assert len(lines(folder / "elsewhere/orca.jsonl")) == 20
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_output_that_is_a_file(folder):
    (folder / "file").write_text("")
    save(MIXTURE | {"output": "file"})
    with pytest.raises(DataError, match=r"output: file .*\(file\)"):
        make_mixture(folder / "mix.yml")


def test_a_dataset_that_is_all_benchmark_data_is_reported_not_rejected(folder):
    save(MIXTURE | {"sets": {"bad": {"path": "bad.jsonl", "text_columns": "q"}, "math": MIXTURE["sets"]["math"]}})
    write_lines("bad.jsonl", [{"q": "it is nothing of it here"}] * 2)
    report, _ = make_mixture(folder / "mix.yml")
    assert report.sets["bad"].rows_kept == 0
    assert content(folder / "made/mix")["bad.jsonl"] == b""
    assert [one["benchmark_row"] for one in lines(folder / "made/mix/dropped.jsonl")] == [1, 1]
    assert report.benchmark_rows == {"bench.jsonl": {"ngrams": 2, "inside": 0, "equal": 0}}
    assert "bad: NO ROWS" in as_text(report, folder / "made/mix", made=True)


def test_rows_that_cannot_be_read_are_dropped_and_named(folder):
    damaged = [b'{"text": "cut', b'{"text": "a"},', "é".encode("latin-1"), b"[1]", b'{"text": "half \\ud83d"}', b""]
    sound = b'{"text": "whole", "late": "2024-01-01"}'
    (folder / "mixed.jsonl").write_bytes(b"\n".join([sound, *damaged, sound]))
    save(MIXTURE | {"sets": {"math": {"path": "mixed.jsonl", "text_columns": "text"}}})
    report, _ = make_mixture(folder / "mix.yml")
    assert (report.sets["math"].rows_read, report.sets["math"].rows_kept) == (7, 2)
    dropped = lines(folder / "made/mix/dropped.jsonl")
    assert [(one["row"], one["reason"], one["column"]) for one in dropped] == [
        *((row, "unreadable", "") for row in (2, 3, 4, 5)),
        (6, "unreadable", "text"),
    ]
    assert content(folder / "made/mix")["math.jsonl"] == (sound + b"\n") * 2


def test_changed_content_with_the_same_size_and_time_is_detected(folder):
    make_mixture(folder / "mix.yml")
    state, text = os.stat("orca1.jsonl"), Path("orca1.jsonl").read_text()
    Path("orca1.jsonl").write_text(text.replace("reply", "REPLY"))
    os.utime("orca1.jsonl", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat("orca1.jsonl").st_size == state.st_size
    _, made = make_mixture(folder / "mix.yml")
    assert made
    assert any("REPLY" in row["r"] for row in lines(folder / "made/mix/orca.jsonl"))


def test_the_same_content_with_another_time_is_reused(folder):
    make_mixture(folder / "mix.yml")
    os.utime("orca1.jsonl", (1, 1))
    assert not make_mixture(folder / "mix.yml")[1]


def test_a_mixture_of_an_older_format_is_rebuilt(folder):
    make_mixture(folder / "mix.yml")
    path = folder / "made/mix/report.json"
    old = json.loads(path.read_text())
    # As version 1 wrote it: inputs by time, no benchmark rows.
    old |= {"format_version": 1, "inputs": {name: [size, 1] for name, (size, _) in old["inputs"].items()}}
    del old["benchmark_rows"]
    path.write_text(json.dumps(old))
    assert make_mixture(folder / "mix.yml")[1]


def test_types_that_json_lacks(folder):
    import pyarrow
    import pyarrow.parquet

    table = {
        "text": ["a b"],
        "day": [datetime.date(2024, 1, 2)],
        "price": [decimal.Decimal("1.50")],
        "png": [b"\xff"],
        "image": [b"\xff"],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), "math.parquet")
    save(MIXTURE | {"sets": {"math": {"path": "math.parquet", "text_columns": "text"}}})
    make_mixture(folder / "mix.yml")
    assert lines(folder / "made/mix/math.jsonl") == [
        {"text": "a b", "day": "2024-01-02", "price": "1.50", "image": {"bytes": 1}}
    ]


kept_rows = st.lists(st.integers(0, 1), max_size=60).map(bytes)


def chosen(kept, rows, seed):
    return [row for row, stays in enumerate(choose_rows(kept, rows, seed)) if stays]


def test_the_choice_is_pinned():
    """Twenty rows with the seed 42, worked out from Python's documented generator: the five smallest numbers."""
    import random

    draw = random.Random(42)
    numbers = [draw.getrandbits(64) for _ in range(20)]
    assert chosen(bytes([1] * 20), 5, 42) == sorted(sorted(range(20), key=numbers.__getitem__)[:5])


@given(kept_rows, st.integers(1, 60), st.integers(0, 3))
def test_the_requested_number_of_kept_rows_is_sampled(kept, rows, seed):
    found = chosen(kept, rows, seed)
    assert len(found) == min(rows, sum(kept))
    assert all(kept[row] for row in found)
    assert found == chosen(kept, rows, seed)


@given(kept_rows, st.integers(1, 60), st.integers(1, 60))
def test_a_smaller_cap_samples_a_subset(kept, rows, others):
    assert set(chosen(kept, min(rows, others), 1)) <= set(chosen(kept, max(rows, others), 1))


@given(kept_rows, st.integers(1, 60), st.data())
def test_dropping_a_row_replaces_only_that_row(kept, rows, data):
    before = chosen(kept, rows, 1)
    if not before:
        return
    gone = data.draw(st.sampled_from(before))
    without = bytearray(kept)
    without[gone] = 0
    after = chosen(without, rows, 1)
    assert set(before) - {gone} <= set(after)
    assert len(set(after) - set(before)) <= 1


def test_the_seed_decides():
    assert chosen(bytes([1] * 200), 20, 1) != chosen(bytes([1] * 200), 20, 2)


def test_every_row_is_chosen_about_equally_often():
    counts = Counter(row for seed in range(2000) for row in chosen(bytes([1] * 20), 5, seed))
    assert all(400 < counts[row] < 600 for row in range(20)), "500 expected, five standard deviations are 97"


def test_no_cap_keeps_all():
    assert chosen(bytes([1, 0, 1]), None, 1) == [0, 2]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 1000), st.integers(0, 2000)), min_size=1).map(
        lambda sets: ({k: w for k, (w, _) in sets.items()}, {k: a for k, (_, a) in sets.items()})
    )
)
def test_shares(sets):
    wanted, available = sets
    rows = rows_with_shares(wanted, available)
    for name, count in rows.items():
        assert count <= min(wanted[name], available[name])
    scarce = [name for name in wanted if rows[name] == min(wanted[name], available[name])]
    assert scarce, "the scarcest set gives all it has"
    for name in wanted:  # |rows / wanted - scale| < 1 row
        scale = rows[scarce[0]] / wanted[scarce[0]]
        assert any(abs(rows[name] - wanted[name] * rows[one] / wanted[one]) < 1 + 1e-6 for one in scarce), scale


def test_all_datasets_keep_their_rows_if_none_is_short():
    assert rows_with_shares({"a": 10, "b": 5}, {"a": 100, "b": 5}) == {"a": 10, "b": 5}
