import gzip
import itertools
import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from doc_blocks import blocks_of
from faults import WRITING, in_child, strike
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.cli import solar
from solar_plugins.data import row_files
from solar_plugins.data.mixture import make_mixture, make_part
from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.data.mixture_parts import Part, parts_folder
from solar_plugins.errors import ArgsError, DataError

MIXTURE = {
    "output": "made/mix",
    "sets": {
        "orca": {
            "path": ["a.jsonl", "empty.jsonl", "b.jsonl.gz", "a.jsonl"],
            "rows": 30,
            "text_columns": ["q", "r"],
            "task_column": "task",
            "exclude_tasks": ["t7"],
        },
        "math": {"path": ["array.json", "table.parquet"], "text_columns": "q"},
        "again": {"path": "a.jsonl", "text_columns": "q", "rows": 5},
    },
    "decontaminate": {"ngram": 3, "against": [{"path": "bench.txt"}]},
}
MIX = Path("mix.yml")
GUIDE = Path(__file__).parents[3] / "docs/guides/data-mixtures.md"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Files of every kind, a mixture file of them, and in ``alone`` the mixture of one machine."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"question {i}", "r": f"reply {i}", "task": f"t{i % 10}"} for i in range(80)]
    rows[3]["r"] = "One two, three"
    rows[60]["q"] = "so one TWO three."
    del rows[50]["r"]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    lines[20] = b"{cut\n\n"
    Path("a.jsonl").write_bytes(b"".join(lines[:40]))
    Path("empty.jsonl").write_bytes(b"")
    Path("b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[40:])))
    Path("array.json").write_text(json.dumps(rows[:30], indent=1))
    pyarrow.parquet.write_table(pyarrow.table({"q": [row["q"] for row in rows]}), "table.parquet", row_group_size=7)
    Path("bench.txt").write_text("one two three\n")
    save(MIXTURE | {"output": "alone"})
    make_mixture(MIX, 1)
    save(MIXTURE)
    return tmp_path


def save(mixture):
    MIX.write_text(yaml.safe_dump(mixture, sort_keys=False))


def content(folder):
    """Every file; the report without its duration and the folder's name."""
    found = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    report = json.loads(found.pop("report.json"))
    return found | {"report": report | {"seconds": 0, "mixture": report["mixture"] | {"output": ""}}}


def filter_parts(parts, ranks=None):
    for rank in ranks or range(parts):
        make_part(MIX, Part(rank, parts), 1)


def assert_joined_like_alone():
    make_mixture(MIX, 1)
    assert content("made/mix") == content("alone")
    assert [path.name for path in Path("made").iterdir()] == ["mix"], "the parts are removed"


@pytest.mark.parametrize(
    ("parts", "block_bytes"), [(1, 2_000_000), (2, 77), (3, 1), (3, 2_000_000), (8, 77), (30, 1), (30, 2_000_000)]
)
def test_any_number_of_parts_gives_the_mixture_of_one_machine(monkeypatch, parts, block_bytes):
    monkeypatch.setattr(row_files, "BLOCK_BYTES", block_bytes)
    filter_parts(parts, reversed(range(parts)))
    read = [json.loads((path / "report.json").read_text()) for path in Path("made/mix.parts").iterdir()]
    assert sum(one["rows"] for part in read for one in part["sets"].values()) == 120 + 30 + 80 + 40
    if parts == 3 and block_bytes == 1:
        assert all(len(part["inputs"]) < 6 for part in read), "a part reads only its files"
    assert_joined_like_alone()


def test_a_part_is_filtered_once_and_again_when_its_input_changes():
    assert [make_part(MIX, Part(0, 2), processes)[1] for processes in (2, 1)] == [True, False]
    make_part(MIX, Part(1, 2))
    with open("a.jsonl", "a") as file:
        file.write('{"q": "new", "r": "row", "task": "t"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: changed since part 0 of 2 read it; .*--part 0/2 again"):
        make_mixture(MIX)
    assert not Path("made/mix").exists()
    assert make_part(MIX, Part(0, 2))[1]
    assert make_part(MIX, Part(1, 2))[1]
    save(MIXTURE | {"output": "alone"})
    make_mixture(MIX)
    save(MIXTURE)
    assert_joined_like_alone()


def test_missing_parts_are_named():
    filter_parts(4, [0, 2])
    with pytest.raises(DataError, match=r"made/mix\.parts: 2 of 4 parts are missing: 1, 3; .*--part 1/4.*remove"):
        make_mixture(MIX)
    filter_parts(4, [1, 3])
    assert_joined_like_alone()


def test_parts_of_two_numbers_are_not_mixed():
    filter_parts(2)
    with pytest.raises(DataError, match=r"made/mix\.parts: contains parts of 2, and --part is 0/3"):
        make_part(MIX, Part(0, 3))
    shutil.copytree("made/mix.parts/0-of-2", "made/mix.parts/0-of-3")
    with pytest.raises(DataError, match=r"made/mix\.parts: contains parts of 2 and of 3"):
        make_mixture(MIX)
    shutil.rmtree("made/mix.parts/0-of-3")
    shutil.rmtree("made/mix.parts/1-of-2")
    shutil.copytree("made/mix.parts/0-of-2", "made/mix.parts/1-of-2")
    with pytest.raises(DataError, match=r"1-of-2: rank differs.*--part 1/2 again"):
        make_mixture(MIX)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda part: (part / "kept.bin").write_bytes(b"\1"), r"kept\.bin .* damaged or missing; .*--part 1/2 again"),
        (lambda part: (part / "dropped.jsonl").unlink(), r"dropped\.jsonl is damaged or missing"),
        (lambda part: (part / "report.json").write_text("{"), r"1-of-2/report\.json.*--part 1/2 again"),
        (lambda part: edit(part, lambda report: report.pop("sets")), r"report\.json: damaged \(KeyError"),
        (lambda part: edit(part, lambda report: report.update(format_version=0)), r"1-of-2: format_version differs"),
        (lambda part: save(MIXTURE | {"decontaminate": None}), r"0-of-2: mixture differs; .*--part 0/2 again"),
    ],
)
def test_parts_that_cannot_be_used(damage, message):
    filter_parts(2)
    damage(Path("made/mix.parts/1-of-2"))
    with pytest.raises(DataError, match=message):
        make_mixture(MIX)
    assert not Path("made/mix").exists()
    filter_parts(2)
    make_mixture(MIX)


def edit(part, change):
    report = json.loads((part / "report.json").read_text())
    change(report)
    (part / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize(
    ("second", "message"), [(100, r"a part starts at row"), (2_000, r"parts filtered|fit together")]
)
def test_parts_whose_blocks_differ_are_rejected(monkeypatch, second, message):
    save(MIXTURE | {"sets": {"one": {"path": "a.jsonl", "text_columns": "q"}}})
    monkeypatch.setattr(row_files, "BLOCK_BYTES", 700)
    make_part(MIX, Part(0, 2))
    monkeypatch.setattr(row_files, "BLOCK_BYTES", second)
    make_part(MIX, Part(1, 2))
    with pytest.raises(DataError, match=message):
        make_mixture(MIX)
    assert not Path("made/mix").exists()


@pytest.mark.parametrize("step", [19, pytest.param(1, marks=pytest.mark.slow)])
def test_a_part_that_is_killed_at_any_moment_is_filtered_again(step):
    killed = 0
    for k in itertools.count(1, step):
        shutil.rmtree("made", ignore_errors=True)
        make_part(MIX, Part(1, 2), 1)

        def work(k=k):
            strike(k, lambda name: os.kill(os.getpid(), signal.SIGKILL), WRITING)
            make_part(MIX, Part(0, 2), 1)

        status, _ = in_child(work)
        if status == 0:
            break
        killed += 1
        if not Path("made/mix.parts/0-of-2").exists():
            with pytest.raises(DataError, match=r"1 of 2 parts are missing: 0;"):
                make_mixture(MIX)
        make_part(MIX, Part(0, 2), 1)
        assert_joined_like_alone()
    assert killed > 40 / step


def test_what_a_killed_run_left_is_removed_by_the_next():
    filter_parts(2)
    make_mixture(MIX)
    filter_parts(2)
    (parts_folder(Path("made/mix")) / ".1-of-3.partial-00000000-1-1-00000000").mkdir()
    assert not make_mixture(MIX)[1]
    assert [path.name for path in Path("made").iterdir()] == ["mix"]
    Path("made/mix.parts").mkdir()
    Path("made/mix.parts/note.txt").write_text("mine")
    make_mixture(MIX)
    assert Path("made/mix.parts/note.txt").exists()


def test_the_command_filters_a_part():
    for part, rows in (("0/2", 150), ("1/2", 120)):
        found = CliRunner().invoke(solar, ["mix", "mix.yml", "--part", part])
        assert found.exit_code == 0, found.output
        assert f"part {part[0]} of 2, {rows} rows filtered" in found.output
    found = CliRunner().invoke(solar, ["mix", "mix.yml", "--part", "1/2", "--json"])
    assert json.loads(found.stdout)["rank"] == 1
    assert "already filtered" in CliRunner().invoke(solar, ["mix", "mix.yml", "--part", "1/2"]).output
    assert CliRunner().invoke(solar, ["mix", "mix.yml"]).exit_code == 0
    assert content("made/mix") == content("alone")


@pytest.mark.skipif(not find_spec("datatrove"), reason="datatrove is not installed; --part is tested without it")
@pytest.mark.parametrize("workers", [2, 3])
def test_the_guides_datatrove_script(run, workers):
    (script,) = [one.text for one in blocks_of(GUIDE) if "datatrove" in one.text]
    script = script.replace("mixture.yml", "mix.yml").replace("workers=3", f"workers={workers}")
    Path("script.py").write_text(script.replace("tasks=16", "tasks=5"))
    result = run(sys.executable, "script.py")
    assert result.returncode == 0, result.stderr[-2000:]
    assert content("made/mix") == content("alone")
    assert [path.name for path in Path("made").iterdir()] == ["mix"]


@pytest.mark.parametrize("text", ["3", "4/4", "1/0", "-1/4", "a/b", "1/2/3"])
def test_a_part_that_does_not_exist(text):
    with pytest.raises(ArgsError, match=r"--part: .*expected R/W.*0/4"):
        Part.of(text)


def test_an_output_that_is_not_ours_is_found_before_filtering():
    Path("made/mix").mkdir(parents=True)
    Path("made/mix/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"output: made/mix .*\(thesis\.tex\)"):
        make_part(MIX, Part(0, 2))


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), parts=st.integers(1, 20))
def test_every_byte_of_every_file_is_in_one_part(sizes, parts):
    names = {f"f{i}": size for i, size in enumerate(sizes)}
    args = MixtureArgs.model_validate({"output": "x", "sets": {"s": {"path": [*names], "text_columns": "q"}}})
    spans = [Part(rank, parts).spans(args, names)["s"] for rank in range(parts)]
    for name, size in names.items():
        pieces = [span for one in spans for path, span in one if path == name]
        assert [0, *(span.stop for span in pieces)] == [*(span.start for span in pieces), sys.maxsize]
        assert all(span.start < max(size, 1) for span in pieces)
