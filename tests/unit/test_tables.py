import io

import pytest
from rich.console import Console

from solar_plugins.tables import lines, show, table

ROWS = [["a", "9.25", "1"], ["b[bold]", "10.50", "20"], ["ü" * 300, "-", ""]]


def test_the_first_column_is_aligned_left_and_markup_is_text():
    assert lines(table(["name", "score", "n"], ROWS[:2])) == [
        "name     score   n",
        "------------------",
        "a         9.25   1",
        "b[bold]  10.50  20",
    ]


def test_a_rule_is_drawn_before_the_given_rows():
    assert lines(table(["a"], [["b"], ["c"], ["d"]], rules=(1,))) == ["a", "-", "b", "-", "c", "d"]


def test_the_last_columns_may_be_aligned_left():
    assert lines(table(["n", "why"], [["10", "x"]], left=(1,))) == [" n  why", "-------", "10  x"]


@pytest.mark.parametrize("width", [20, 400])
def test_a_file_and_a_narrow_terminal_get_the_same_text(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)

    show(table(["name", "score", "n"], ROWS), console)

    whole = lines(table(["name", "score", "n"], ROWS))
    assert [line.rstrip() for line in file.getvalue().splitlines()] == whole
    assert whole[-1].startswith("ü" * 300)
    assert not {"…", "\x1b"} & set("".join(whole))
    assert console.width == width
