"""The benchmark of the stages: its tables, and that it notices rows that differ."""

import json

import pytest
import stages
from stage_rows import ALPACA, AXOLOTL, OURS, TURNS, as_messages, differing_rows, rows_of
from stages import Run, comparison, growth, slope, write_page

PROBE = "solar probe"


def runs(tool, exponent, factor=1.0):
    return [
        Run(PROBE, tool, size, number, 100, 2 * factor * size**exponent, factor * size**exponent)
        for number in (0, 1)
        for size in (2, 4, 8)
    ]


def test_the_exponent_is_that_of_the_runs():
    assert slope(runs(OURS, 1.5)).median == pytest.approx(1.5)
    line = "| solar probe | solar_plugins | 2, 4, 8 layers of the base | 4.00, 16.00, 64.00 | 2.00 (2.00 to 2.00) |"
    assert line in growth(runs(OURS, 2.0))


def test_ratios_are_those_of_the_largest_size():
    table = comparison([*runs(OURS, 1.0), *runs("plain loop", 1.0, 3.0)], [PROBE], "tokens")
    assert (
        "| solar probe | 8 | plain loop | 2 | 24.0 (24.0 to 24.0) | 4.17 (4.17 to 4.17) | 3.00 (3.00 to 3.00) |"
        in table
    )


def test_the_page_needs_only_the_parts_that_were_measured(tmp_path):
    found = [run._asdict() for run in (*runs(OURS, 1.0), *runs("plain loop", 1.0, 3.0))]
    (tmp_path / "stages.json").write_text(json.dumps({"machine": "2 CPUs", "runs": found}))
    write_page(tmp_path)
    page = (tmp_path / "stages.md").read_text()
    assert "plain loop" in page
    assert "{" not in page.replace("{data: {examples_per: conversation}}", "")
    assert (tmp_path / "stages-models.png").is_file()


@pytest.mark.parametrize("kind", [ALPACA, TURNS])
def test_the_rows_are_the_same_every_time(kind):
    rows = list(rows_of(kind, 50))
    assert rows == list(rows_of(kind, 50))
    for row in map(as_messages, rows):
        assert row["messages"][-1]["role"] == "assistant"


def test_different_rows_are_counted():
    rows = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    assert differing_rows(rows, rows) == 0
    assert differing_rows(rows, [rows[0], {"input_ids": [3], "labels": [-100]}]) == 1
    with pytest.raises(RuntimeError, match="2 rows, and 1"):
        differing_rows(rows, rows[:1])


def test_both_tools_give_the_same_ids_and_labels(tmp_path):
    for kind in (ALPACA, TURNS):
        found = list(stages.encode_rows(tmp_path, kind, 20, 0, alone=False))
        assert {run.tool for run in found} == {OURS, AXOLOTL}
        assert [run.units for run in found if run.subject.endswith("differ")] == [0]
