import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from solar_plugins.errors import SolarError
from solar_plugins.report.measure import Loss
from solar_plugins.report.page import loss_dots, render_page, require_jinja


class Elements(HTMLParser):
    """The elements of a page that are open at its end, its words, and the names of all elements."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.names, self.words, self.attributes = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(page):
    elements = Elements()
    elements.feed(page)
    elements.close()
    return elements


def test_every_element_is_closed_and_the_page_says_it_all(report):
    elements = parsed(render_page(report))
    text = " ".join(" ".join(elements.words).split())

    assert elements.open == []
    for words in (
        "12 to 16 layers",
        "Up-scaling raised the held-out loss from 2.500 to 3.250. 40 steps of training lowered it",
        "16.0 M parameters",
        "12.18",  # exp(2.5)
        "+0.750",
        "seam: layer 7 feeds 4, distance 3",
        "optimizer step",
        "1,234 texts",
        "300 predicted, in 3 windows",
        "cpu, float32",
        "8 s, 2026-01-02 03:04 UTC",
        "report.json",
        "(nothing: it ends the text here)",
        "This is one run.",
    ):
        assert words in text


def test_what_models_recipes_and_names_say_is_escaped(report):
    page = render_page(report)
    elements = parsed(page)

    assert not elements.names & {"script", "i", "b", "base"}
    for text in ("<script>alert(1)</script>", "garden & gate", "<b>wall</b>", "# <i>not a tag</i>", "tiny-<base>"):
        assert text in "".join(elements.words)


def test_the_page_asks_nothing_of_the_network(report):
    page = render_page(report)
    attributes = parsed(page).attributes

    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|//[a-z]", page)
    links = [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(value.startswith("#") for value in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_light_and_dark_have_the_same_colours_to_choose(report):
    page = render_page(report)
    light, dark = (set(re.findall(r"--(\w+): ", block)) for block in re.findall(r":root \{([^}]*)\}", page))

    assert light == dark
    assert set(re.findall(r"var\(--(\w+)\)", page)) - {"model"} <= light
    assert "width=device-width" in page


def test_dots_lie_between_the_lowest_and_the_highest_loss(report):
    assert [round(dot.percent, 1) for dot in loss_dots(report)] == [0, 100, 16.7]


def test_equal_losses_have_dots_in_one_place(report):
    same = replace(report, upscaled=report.base, trained=report.base)

    assert {dot.percent for dot in loss_dots(same)} == {0}


@pytest.mark.parametrize("broken", ["base", "trained"])
def test_a_broken_model_still_gives_a_page(report, broken):
    model = getattr(report, broken)
    page = render_page(replace(report, **{broken: replace(model, loss=Loss((math.nan,) * 3, (100,) * 3))}))

    assert f"The held-out loss of the {broken} model is no finite number" in page
    assert "nan" not in " ".join(parsed(page).words)


def test_a_run_without_a_log_gives_a_page_without_a_curve(report):
    page = render_page(replace(report, curve=None))

    assert "No loss curve" in page
    assert "optimizer step" not in page


def test_a_missing_jinja_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with pytest.raises(SolarError, match=r"jinja2 is not installed.*pip install 'solar_plugins\[report\]'"):
        require_jinja()
