"""The pages in a real browser: report and probe, light and dark, on a phone and on paper."""

import re

import pytest
from browser import A4, PHONE, browse, in_a_browser, measured, on_a_screen

from solar_plugins.evaluation.loss import Difference, Loss
from solar_plugins.evaluation.probe.candidates import every_repeat
from solar_plugins.evaluation.probe.probe import Comparison, Document, Documents, PlanResult, ProbeResult
from solar_plugins.report import probe
from solar_plugins.report.page import render_page

pytestmark = in_a_browser


def probe_result(layers=12):
    def plan(place, candidate):
        delta = Difference(0.03 + abs(place - 40) / 10, 0.01)
        return PlanResult(candidate, Loss((900.0 - place,), (600 - place,)), delta, (delta, None), delta)

    plans = tuple(plan(place, candidate) for place, candidate in enumerate(every_repeat(layers)))
    places = {
        size: [place for place, plan in enumerate(plans) if plan.candidate.added == size]
        for size in range(1, layers + 1)
    }
    sizes = {
        size: Comparison(
            min(found, key=lambda place: plans[place].delta),
            next((place for place in found if plans[place].candidate.is_dus), None),
            Difference(-0.25, 0.125),
        )
        for size, found in places.items()
    }
    document = Document(0, (1, 2, 3))
    return ProbeResult(
        base_name="lab/tiny-<base>",
        num_layers=layers,
        documents=Documents(("news.jsonl", "code.jsonl"), (document,) * 6, (document,) * 3),
        base_loss=Loss((600.0,), (300,)),
        plans=plans,
        sizes=sizes,
        influences=(0.1,) * layers,
        angles=((0.0,),),
        device="cpu",
        dtype="float32",
        layer_passes=100,
        naive_layer_passes=200,
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def pages(folder, report, chain_report):
    """Files of a page on one recipe, one on a chain, and one of a probe, all with text that wants much room."""
    result = probe_result()
    block = "# 12 -> 20 layers\nsolar:\n  init: {strategy: slices, slices: [[0, 10], [2, 12]]}\n"
    made = {
        "recipe": render_page(report),
        "chain": render_page(chain_report),
        "probe": probe.render_page(result, [1_000_000] * len(result.plans), block),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_and_a_desktop(pages, folder, dark):
    for one in on_a_screen(pages, folder, dark=dark):
        assert all(picture["source"] == "svg" or picture["source"].startswith("data:") for picture in one["pictures"])
        assert len(one["texts"]) > 40


def test_on_paper(pages, folder):
    found, _ = measured(pages, folder, (A4,), on_paper=True)

    assert [(one["name"], element) for one in found for element in one["cut"]] == []
    for name, path in pages.items():
        browse(f"file://{path}", f"--print-to-pdf={folder / name}.pdf", "--no-pdf-header-footer")
        boxes = re.findall(rb"/MediaBox \[([^\]]*)\]", (folder / f"{name}.pdf").read_bytes())
        assert boxes
        assert {tuple(round(float(number)) for number in box.split()) for box in boxes} == {(0, 0, 595, 842)}


def test_the_browser_measurements_detect_faults(folder):
    """The measurements themselves: a page with every fault that the tests above look for."""
    page = folder / "bad.html"
    page.write_text(
        '<!doctype html><html><body style="background: #fff"><p style="color: #999">pale</p><svg></svg>'
        '<img src="http://127.0.0.1:9/other.png"><div style="width: 900px">wide</div>'
        '<script>console.error("broken")</script>'
    )

    [found], console = measured({"bad": page}, folder, (PHONE,))

    assert found["scrollWidth"] >= 900
    assert [text["text"] for text in found["texts"] if text["contrast"] < 4.5] == ["pale"]
    assert [picture["alternative"] for picture in found["pictures"]] == ["", ""]
    assert any("width: 900px" in element for element in found["cut"])
    assert [name.rpartition("/")[2] for name in found["loaded"]] == ["other.png"]
    assert any("broken" in line for line in console)
