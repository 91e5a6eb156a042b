import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from solar_plugins.evaluation.chat_measures import JudgedPairs
from solar_plugins.evaluation.loss import Loss
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.page import loss_dots, render_page, stage_charts


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
        "Upscaling raised the held-out loss from 2.500 to 3.250. 40 steps of training lowered it",
        "16.0 M parameters",
        "12.18",  # exp(2.5)
        "+0.750",
        "seam: layer 7 feeds 4, distance 3",
        "optimizer step",
        "data/held_out.jsonl, from the top of its 1,234 texts",
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


def dots(report):
    return loss_dots([(role, model.name, model.loss) for role, model in report.rows()])


def test_dots_lie_between_the_lowest_and_the_highest_loss(report):
    assert [round(dot.percent, 1) for dot in dots(report)] == [0, 100, 16.7]


def test_equal_losses_have_dots_in_one_place(report):
    same = replace(report, models=(report.base,) * 3)

    assert {dot.percent for dot in dots(same)} == {0}


@pytest.mark.parametrize("place", [0, 2])
def test_a_broken_model_still_gives_a_page(report, place):
    models = list(report.models)
    models[place] = replace(models[place], loss=Loss((math.nan,) * 3, (100,) * 3))
    page = render_page(replace(report, models=tuple(models)))

    assert f"The held-out loss of the {models[place].name} model is no finite number" in page
    assert "nan" not in " ".join(parsed(page).words)


def test_a_run_without_a_log_gives_a_page_without_a_curve(report):
    page = render_page(replace(report, stages=(replace(report.stages[0], log=None),)))

    assert "No loss curve" in page
    assert "optimizer step" not in page


def test_the_page_of_a_chain_says_it_all(chain_report):
    elements = parsed(render_page(chain_report))
    text = " ".join(" ".join(elements.words).split())

    assert elements.open == []
    for words in (
        "sft lowered the loss on held-out answers from 2.750 to 2.000",
        "held-out answers 3 answers, 300 tokens",
        "Loss on held-out text, nats per token",
        "dpo 16 16.0 M 2.660 +0.160 ± 0.000 2.000 -1.000 ± 0.000 100 % ± 13 50 % ± 16",
        "base 12 16.0 M 2.500 3.000 50 % ± 16",
        "base, upscaled and dus were not trained on that format here",
        "The first loss is 0.6931.",
        "reward margin",
        "reward accuracy",
        "What they answer",
        "average says & <i>so</i>",
        "seam: layer 7 feeds 4, distance 3",
        "5 rows read, 3 kept, 2 dropped (stage sft)",
        "# dpo <i>recipe</i>",
    ):
        assert words in text
    assert not elements.names & {"script", "i", "b", "base"}


def test_a_chain_has_a_scale_for_each_loss_and_pictures_for_each_stage(chain_report):
    page = render_page(chain_report)
    shows = [value for name, value in parsed(page).attributes if name == "aria-label"]

    assert shows[:5] == [
        "Loss by optimizer step",
        "Loss by optimizer step",
        "Loss by optimizer step",
        "Reward margin by optimizer step",
        "Reward accuracy by optimizer step",
    ]
    assert page.count("ln 2</text>") == 1
    assert page.count('class="dots"') == 2


def test_a_loss_is_drawn_with_ln_2_where_it_is_dpos_own(chain_report):
    dpo = chain_report.stages[2]

    loss, margin, accuracy = stage_charts(dpo)
    assert loss.level == (math.log(2), "ln 2")
    assert margin.level is accuracy.level is None
    assert stage_charts(replace(dpo, recipe=parse_recipe({"rl": "orpo"})))[0].level is None
    [alone] = stage_charts(chain_report.stages[1])
    assert (alone.quantity, alone.level) == ("loss", None)
    assert stage_charts(chain_report.stages[3]) == []


def test_the_page_of_a_chain_asks_nothing_of_the_network(chain_report):
    page = render_page(chain_report)

    assert not re.search(r"https?:|@import|//[a-z]", page)
    assert set(re.findall(r"var\(--(\w+)\)", page)) - {"model"} <= set(re.findall(r"--(\w+): ", page))


def test_a_chain_without_chat_sets_and_logs_gives_a_page(chain_report):
    plain = tuple(replace(model, answers=None, pairs=None) for model in chain_report.models)
    conditions = replace(chain_report.conditions, answers=None, pairs=None)
    stages = tuple(replace(stage, log=None) for stage in chain_report.stages)

    page = render_page(replace(chain_report, models=plain, conditions=conditions, stages=stages))
    text = " ".join(" ".join(parsed(page).words).split())

    assert text.count("No loss curve") == 3
    assert '<p class="note"></p>' not in page
    assert "How they go on" in text
    assert "held-out answers" not in text
    assert "held-out pairs" not in text


def test_a_chain_with_a_broken_model_gives_a_page(chain_report):
    *others, last = chain_report.models
    broken = replace(last, answers=Loss((math.nan,) * 3, (100,) * 3), pairs=JudgedPairs((math.nan,) * 6, (-1.0,) * 6))

    words = " ".join(parsed(render_page(replace(chain_report, models=(*others, broken)))).words)

    assert "not finite" in words
    assert not re.search(r"\bnan\b", words)


def test_answers_of_a_chain_are_shown_without_blank_lines(chain_report, report):
    chain, one = (
        replace(said, models=tuple(replace(model, continuations=("In\n\n\n The", "")) for model in said.models))
        for said in (chain_report, report)
    )

    assert "<p>In\n The</p>" in render_page(chain)
    assert "<p>In\n\n\n The</p>" in render_page(one)
