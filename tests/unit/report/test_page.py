import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from solar_plugins.evaluation.loss import Loss
from solar_plugins.recipe import parse_recipe
from solar_plugins.report.page import dot_places, render_page, show_report


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


def shown(report, width=100, color=None, terminal=False):
    """What the terminal shows."""
    from rich.console import Console

    out = io.StringIO()
    show_report(report, Console(file=out, width=width, color_system=color, force_terminal=terminal))
    return out.getvalue()


def terminal(report):
    return " ".join(shown(report).split())


def page(report):
    return text_of(render_page(report))


both_views = pytest.mark.parametrize("view", [page, terminal])


@both_views
def test_one_recipe(report, view):
    text = view(report)

    for fact in (
        "lab/tiny-<base>: 12 to 16 layers",
        "from 2.500 to 3.250. 40 training steps",
        "300 tokens",
        "upscaled 16 16.0 M 3.250 +0.750 ± 0.000 25.79",  # exp(3.25)
        "base 12 12.0 M 2.500 12.18",
        "eval_loss",
        "garden & gate",
        "(nothing: the text ends here)",
        "report.json",
    ):
        assert fact in text


def test_only_the_page_says_how_it_was_measured(report):
    text = page(report)

    for fact in (
        "seam: layer 7 feeds 4, distance 3",
        "optimizer step",
        "data/held_out.jsonl, from the start of its 1,234 texts",
        "300 predicted, in 3 windows",
        "cpu, float32",
        "8 s, 2026-01-02 03:04 UTC",
        "Sample continuations",
        "on 300 tokens of one file was measured",
        "This is one run.",
    ):
        assert fact in text


@both_views
def test_a_chain(chain_report, view):
    text = view(chain_report)

    for fact in (
        "sft lowered the loss on held-out responses from 2.750 to 2.000",
        "3 responses, 300 tokens",
        "dpo 16 16.0 M 2.660 +0.160 ± 0.000 14.30",
        "dpo 2.000 -1.000 ± 0.000",
        "dpo 100 % ± 13 50 % ± 16",
        "average 67 % ± 15 17 % ± 14",
        "base, upscaled, dus: not trained on that format here",
        "The first logged loss is 0.6931.",
        "average says & <i>so</i>",
    ):
        assert fact in text


def test_the_page_of_a_chain(chain_report):
    html = render_page(chain_report)
    text = text_of(html)

    for fact in (
        "reward margin",
        "reward accuracy",
        "Sample responses",
        "5 rows read, 3 kept, 2 dropped (stage sft)",
        "300 tokens of one file, 3 responses, 6 preference pairs was measured",
        "held-out text, responses or pairs was not checked",
        "windows, responses and pairs as independent",
        "after dus is the chat format",
        "# dpo <i>recipe</i>",
    ):
        assert fact in text
    shows = [value for name, value in parsed(html).attributes if name == "aria-label"]
    assert [one.partition(":")[0] for one in shows] == ["Layer map", *["Loss by optimizer step"] * 3] + [
        f"Reward {name} by optimizer step" for name in ("margin", "accuracy")
    ]
    assert all(f"{chart}." in terminal(chain_report) for chart in shows[1:])
    assert "sft (4 steps): Loss" in terminal(chain_report)
    assert html.count("ln 2</text>") == 1
    assert html.count('class="dots"') == 2


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


@both_views
def test_a_broken_model_in_a_chain_still_has_its_rows(broken_report, view):
    text = view(broken_report)

    assert text.count("average not finite not finite") == 2
    assert not re.search(r"\bnan\b", text)


def test_a_run_without_a_log_gives_a_page_without_a_curve(report, with_stage):
    page = render_page(with_stage(report, 0, log=None))

    assert "No training curve" in page
    assert "optimizer step" not in page


@both_views
def test_a_chain_without_responses_pairs_and_logs_does_not_mention_them(plain_report, view):
    text = view(plain_report)

    assert text.count("No training curve") == 3
    assert not any(name in text for name in ("held-out responses", "preference pairs", "reward"))
    assert '<p class="note"></p>' not in render_page(plain_report)
    assert "Sample continuations" in page(plain_report)


def test_continuations_have_no_blank_lines(report):
    blank = tuple(replace(model, continuations=("In\n\n\n The", "")) for model in report.models)

    assert "<p>In\n The</p>" in render_page(replace(report, models=blank))


def test_text_of_models_cannot_control_the_terminal(report):
    text = shown(report, color="standard", terminal=True)

    assert "\x1b[31mthe" not in text
    assert "[31mthe the" in text
    assert "[red]1, 2,[/red]" in text
    assert "[bold]16" in text


def test_names_are_not_markup(chain_report, with_stage):
    *others, last = chain_report.models
    odd = replace(chain_report, models=(*others, replace(last, name="mean[bold]")))

    assert shown(odd).count("mean[bold]") == 7  # Twice in the headline, in three tables, before two responses.
    assert "[/x]" in shown(with_stage(odd, 0, name="[/x]"))


def test_a_file_has_no_colors_and_the_same_text_at_any_width(chain_report):
    long = tuple(replace(model, continuations=("word " * 60, "")) for model in chain_report.models)
    long = replace(chain_report, models=long)

    assert shown(long, width=30) == shown(long, width=300)
    assert shown(long).count("word") == 60 * 6
    assert not {"…", "\x1b"} & set(shown(long))


def test_a_narrow_terminal_wraps_prose_and_keeps_tables_whole(report):
    lines = [line.rstrip() for line in shown(report, width=40, terminal=True).splitlines()]

    assert any("3.250  +0.750 ± 0.000       25.79" in line for line in lines)
    [first] = [line for line in lines if line.startswith("Upscaling")]
    assert len(first) <= 40
