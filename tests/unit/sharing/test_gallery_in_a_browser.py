"""The gallery in a real browser: light and dark, on a phone and on paper, filtered, sorted, and without its script."""

import html
import json
import re
from pathlib import Path

import pytest
from browser import A4, DESKTOP, browse, in_a_browser, measured, on_a_screen

from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.sharing.gallery import Entry, entries_of, render

pytestmark = in_a_browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def pages(folder):
    """Our gallery, and one with long names, a broken file and an unknown base of another pack."""
    ours = entries_of(recipe_directory(), "solar_plugins")
    long = "outputs/" + "x" * 200
    other = Entry("other", f"{long}.yml", "A " + "very " * 60, stages=("SFT",), base=long, unknown=f"{long} is unknown")
    made = {
        "ours": render(ours, "Recipes"),
        "two": render([*ours[:3], other, Entry("other", "b.yml", problem=long)], "Two"),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone_and_a_desktop(pages, folder, dark):
    for one in on_a_screen(pages, folder, dark=dark):
        assert all(" layers: [" in picture["alternative"] for picture in one["pictures"])


def test_on_paper(pages, folder):
    found, _ = measured(pages, folder, (A4,), on_paper=True)
    assert [(one["name"], element) for one in found for element in one["cut"]] == []
    browse(f"file://{pages['ours']}", f"--print-to-pdf={folder / 'ours.pdf'}", "--no-pdf-header-footer")
    assert len(re.findall(rb"/MediaBox", (folder / "ours.pdf").read_bytes())) >= 3


ACTIONS = {
    "stage": "choose('stage', 'DPO')",
    "status": "choose('status', 'run')",
    "gpu": "choose('gpu', '24')",
    "text": "choose('text', 'QLoRA  mistral')",
    "both": "choose('status', 'run'); choose('stage', 'sDPO')",
    "nothing": "choose('text', 'no such recipe')",
    "memory": "click(4)",
    "memory, descending": "click(4); click(4)",
    "layers by the list": "pick('3 1')",
    "reset": "click(4); choose('stage', 'DPO'); form.reset()",
    "hidden": "",
}


@pytest.fixture(scope="module")
def driven(pages, folder):
    """What the page shows after each of the actions."""
    script = Path(__file__).with_name("drive_gallery.js").read_text(encoding="utf-8")
    outer = folder / "driver.html"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><body><iframe src="ours.html" width="1200" height="900"></iframe>'
        f"<script>const ACTIONS = {json.dumps(ACTIONS)};{script}</script>"
    )
    options = ("--allow-file-access-from-files", "--dump-dom", "--virtual-time-budget=20000")
    dom, console = browse(f"file://{outer}", *options)
    assert console == []
    return json.loads(html.unescape(re.search(r'data-results="([^"]*)"', dom)[1]))


@pytest.fixture(scope="module")
def entries():
    return entries_of(recipe_directory(), "solar_plugins")


def names(entries):
    return [entry.name for entry in entries]


def test_filters(driven, entries):
    assert driven["stage"]["names"] == names(entry for entry in entries if "DPO" in entry.stages)
    assert driven["status"]["names"] == names(entry for entry in entries if entry.ran.status == "run")
    small = [entry for entry in entries if entry.memory and entry.memory.devices.gpus == 1]
    assert driven["gpu"]["names"] == names(one for one in small if one.memory.peak_bytes <= 0.85 * 24e9)
    assert "solar_dus_qlora.yml" in driven["gpu"]["names"]
    assert "solar_dus.yml" not in driven["gpu"]["names"]
    assert driven["text"]["names"] == names(
        entry for entry in entries if "QLoRA" in entry.stages and "mistral" in f"{entry.base} {entry.origin}"
    )
    assert driven["both"]["names"] == ["smollm2/solar_sdpo_1.yml", "smollm2/solar_sdpo_2.yml"]
    assert driven["both"]["count"] == f"2 of {len(entries)} recipes"
    assert (driven["nothing"]["names"], driven["nothing"]["none"]) == ([], True)
    assert not driven["both"]["none"]


def test_sorting_puts_rows_without_a_value_last(driven, entries):
    for name, descending in (("memory", False), ("memory, descending", True)):
        peaks = [int(peak) for peak in driven[name]["peaks"] if peak]
        assert peaks == sorted(peaks, reverse=descending)
        assert driven[name]["peaks"][len(peaks) :] == [""] * (len(entries) - len(peaks))
        assert driven[name]["sorted"] == [["GPU memory", "descending" if descending else "ascending"]]
    layers = [int(number) for number in driven["layers by the list"]["layers"] if number]
    assert layers == sorted(layers, reverse=True)
    assert driven["layers by the list"]["sorted"] == [["layers", "descending"]]
    assert driven["reset"]["names"] == driven["hidden"]["names"] == names(entries)
    assert driven["reset"]["sorted"] == []


def test_without_a_script_it_is_a_plain_table(pages, folder, entries):
    page = pages["ours"].read_text()
    plain = folder / "plain.html"
    plain.write_text(page.replace("script-src 'sha256-", "script-src 'sha256-X"))
    found, console = measured({"plain": plain}, folder, (DESKTOP,))
    assert any("Content Security Policy" in line for line in console), "the script did not run"
    texts = {text["text"] for text in found[0]["texts"]}
    assert {"search", "sort by", "reset"}.isdisjoint(texts), "no control that does nothing"
    dom, _ = browse(f"file://{plain}", "--dump-dom")
    assert dom.count("<tr data-pack") == len(entries)


def test_the_policy_of_the_page_stops_a_script_that_was_not_escaped(pages, folder):
    """A second wall: escaping is tested in test_gallery.py."""
    change = "document.title = 'changed'"
    row = f'<tr><td><script>{change}</script><img src="x" onerror="{change}"></td></tr>'
    hurt = folder / "hurt.html"
    hurt.write_text(pages["ours"].read_text().replace("<tbody>", f"<tbody>{row}"))
    dom, console = browse(f"file://{hurt}", "--dump-dom")
    assert "<title>Recipes</title>" in dom
    assert sum("Content Security Policy" in line for line in console) >= 2
