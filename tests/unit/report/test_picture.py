import re
import subprocess
import sys

import pytest

from solar_plugins.errors import SolarError
from solar_plugins.report.picture import (
    INK,
    check_picture_path,
    depth_colors,
    inline_svg,
    new_sheet,
    save_picture,
    spread,
)


@pytest.fixture
def figure():
    figure, axes = new_sheet(144, 72)
    axes.text(10, 10, "words <&>", color=INK)
    return figure


def test_a_png_has_the_size_of_the_sheet(tmp_path, figure):
    from PIL import Image

    save_picture(figure, tmp_path / "a.PNG")

    with Image.open(tmp_path / "a.PNG") as image:
        assert image.format == "PNG"
        assert image.size == (2 * 220, 220)


def test_an_svg_keeps_its_text_and_is_the_same_each_time(tmp_path, figure):
    save_picture(figure, tmp_path / "a.svg")
    save_picture(figure, tmp_path / "b.svg")

    assert "words &lt;&amp;&gt;" in (tmp_path / "a.svg").read_text()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_an_inline_svg_is_one_element_with_the_colors_of_the_page(figure):
    svg = inline_svg(figure, 'a <b> & "c"')

    assert re.fullmatch(r"<svg .*</svg>\s*", svg, flags=re.DOTALL)
    assert svg.startswith('<svg role="img" aria-label="a &lt;b&gt; &amp; &quot;c&quot;" ')
    assert "var(--ink)" in svg
    assert INK not in svg
    assert not re.search("http|xmlns|<style|<metadata", svg)


@pytest.mark.parametrize("name", ["plan.pdf", "plan", "plan.jpg"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(SolarError, match=r"plan.*expected .png or .svg"):
        check_picture_path(tmp_path / name)


def test_folders_are_made_and_what_cannot_be_written_is_explained(tmp_path, figure):
    save_picture(figure, tmp_path / "new" / "folder" / "plan.png")
    assert (tmp_path / "new" / "folder" / "plan.png").stat().st_size > 0
    (tmp_path / "file").write_text("")
    with pytest.raises(SolarError, match=r"file/plan.png: the picture could not be written \(\w+"):
        save_picture(figure, tmp_path / "file" / "plan.png")


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    # In a process of its own, because other packages load pyplot.
    code = (
        "import sys, matplotlib; from pathlib import Path; from solar_plugins.report.picture import *;"
        "keys = ['svg.fonttype', 'svg.hashsalt', 'font.sans-serif'];"
        "before = [matplotlib.rcParams[key] for key in keys];"
        "save_picture(new_sheet(72, 72)[0], Path(sys.argv[1]));"
        "assert [matplotlib.rcParams[key] for key in keys] == before; assert 'matplotlib.pyplot' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code, tmp_path / "a.svg"], check=True)


def test_layers_have_different_colors():
    assert len(set(depth_colors(88))) == 88
    assert len(depth_colors(1)) == 1


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], []),
        ([5], [5]),
        ([20, 40], [20, 40]),
        ([30, 30], [25, 35]),
        ([0, 0, 0], [0, 10, 20]),
        ([100, 100], [90, 100]),
    ],
)
def test_spread_moves_as_little_as_it_can(wanted, expected):
    assert spread(wanted, 10, 0, 100) == expected
