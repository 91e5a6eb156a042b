import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.measure import PairLogProbs
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.page import dot_places, render_page


class Elements(HTMLParser):
    """The elements of a page that are open at its end, its text, and the names of all elements."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.names, self.text, self.attributes = [], set(), [], []

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
        self.text.append(data)


def parsed(page):
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert elements.open == []
    return elements


def text_of(page):
    return " ".join(" ".join(parsed(page).text).split())


def test_the_page_of_one_recipe(report):
    text = text_of(render_page(report))

    for fact in (
        "12 to 16 layers",
        "from 2.500 to 3.250. 40 training steps",
        "16.0 M",
        "12.18",  # exp(2.5)
        "+0.750",
        "seam: layer 7 feeds 4, distance 3",
        "optimizer step",
        "data/held_out.jsonl, from the start of its 1,234 texts",
        "300 predicted, in 3 windows",
        "cpu, float32",
        "8 s, 2026-01-02 03:04 UTC",
        "report.json",
        "(nothing: the text ends here)",
        "Sample continuations",
        "on 300 tokens of one file was measured",
        "This is one run.",
    ):
        assert fact in text


def test_the_page_of_a_chain(chain_report):
    page = render_page(chain_report)
    text = text_of(page)

    for fact in (
        "sft lowered the loss on held-out responses from 2.750 to 2.000",
        "Held-out responses 3 responses, 300 tokens",
        "dpo 16 16.0 M 2.660 +0.160 ± 0.000 14.30",
        "dpo 2.000 -1.000 ± 0.000",
        "dpo 100 % ± 13 50 % ± 16",
        "base, upscaled, dus: not trained on that format here",
        "The first logged loss is 0.6931.",
        "reward margin",
        "reward accuracy",
        "Sample responses",
        "average says & <i>so</i>",
        "seam: layer 7 feeds 4, distance 3",
        "5 rows read, 3 kept, 2 dropped (stage sft)",
        "300 tokens of one file, 3 responses, 6 preference pairs was measured",
        "held-out text, responses or pairs was not checked",
        "windows, responses and pairs as independent",
        "after dus is the chat format",
        "# dpo <i>recipe</i>",
    ):
        assert fact in text
    shows = [value.partition(":")[0] for name, value in parsed(page).attributes if name == "aria-label"]
    assert shows == ["Layer map", *["Loss by optimizer step"] * 3] + [
        f"Reward {name} by optimizer step" for name in ("margin", "accuracy")
    ]
    assert page.count("ln 2</text>") == 1
    assert page.count('class="dots"') == 2


def test_a_held_out_file_that_was_trained_on_is_named(chain_report, with_stage):
    recipe = {"datasets": [{"path": "data/held_out.jsonl", "type": "completion"}]}

    text = text_of(render_page(with_stage(chain_report, 0, recipe=parse_recipe(recipe))))

    assert "data/held_out.jsonl is not held out: dus trained on it." in text
    assert "not held out" not in text_of(render_page(chain_report))


def test_everything_from_models_recipes_and_names_is_escaped(report, chain_report):
    elements = parsed(render_page(report))

    for text in ("<script>alert(1)</script>", "garden & gate", "<b>wall</b>", "# <i>not a tag</i>", "tiny-<base>"):
        assert text in "".join(elements.text)
    assert not (elements.names | parsed(render_page(chain_report)).names) & {"script", "i", "b", "base"}


def test_the_page_loads_nothing_from_the_network(report, chain_report):
    for page in map(render_page, (report, chain_report)):
        assert "default-src 'none'" in page
        assert not re.search(r"https?:|@import|//[a-z]", page)
        links = [
            value for name, value in parsed(page).attributes if name in ("src", "href", "srcset", "action", "data")
        ]
        assert all(value.startswith("#") for value in links)
        assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_light_and_dark_have_the_same_colors(chain_report):
    page = render_page(chain_report)
    light, dark = (set(re.findall(r"--(\w+): ", block)) for block in re.findall(r":root \{([^}]*)\}", page))

    assert light == dark
    assert set(re.findall(r"var\(--(\w+)\)", page)) - {"model"} <= light


def test_dots_lie_between_the_lowest_and_the_highest_loss():
    assert dot_places([2.5, 3.25, 2.6]) == pytest.approx([0, 100, 40 / 3])
    assert dot_places([2.5, 2.5]) == [0, 0]
    assert dot_places([2.5, math.nan, 3.5]) == [0, None, 100]


@pytest.mark.parametrize("place", [0, 2])
def test_a_broken_model_still_gives_a_page(report, place):
    models = list(report.models)
    models[place] = replace(models[place], loss=Loss((math.nan,) * 3, (100,) * 3))
    text = text_of(render_page(replace(report, models=tuple(models))))

    assert f"Not finite: the held-out loss of {models[place].name}" in text
    assert not re.search(r"\bnan\b", text)


def test_a_broken_model_in_a_chain_still_gives_a_page(chain_report):
    *others, last = chain_report.models
    broken = replace(last, answers=Loss((math.nan,) * 3, (100,) * 3), pairs=PairLogProbs((math.nan,) * 6, (-1.0,) * 6))

    text = text_of(render_page(replace(chain_report, models=(*others, broken))))

    assert "average not finite not finite" in text
    assert not re.search(r"\bnan\b", text)


def test_a_run_without_a_log_gives_a_page_without_a_curve(report, with_stage):
    page = render_page(with_stage(report, 0, log=None))

    assert "No training curve" in page
    assert "optimizer step" not in page


def test_a_chain_without_chat_sets_and_logs_gives_a_page(chain_report):
    plain = tuple(replace(model, answers=None, pairs=None) for model in chain_report.models)
    conditions = replace(chain_report.conditions, answers=None, pairs=None)
    stages = tuple(replace(stage, log=None) for stage in chain_report.stages)

    page = render_page(replace(chain_report, models=plain, conditions=conditions, stages=stages))
    text = text_of(page)

    assert text.count("No training curve") == 3
    assert '<p class="note"></p>' not in page
    assert "Sample continuations" in text
    assert not any(name in text for name in ("held-out responses", "preference pairs"))


def test_continuations_have_no_blank_lines(report):
    blank = tuple(replace(model, continuations=("In\n\n\n The", "")) for model in report.models)

    assert "<p>In\n The</p>" in render_page(replace(report, models=blank))
