"""Pages in headless Chromium: what it prints, and what measure.js measures of them."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

in_a_browser = [
    pytest.mark.slow,  # Starts a browser.
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]
"""For ``pytestmark``."""

PHONE, DESKTOP = 375, 1280
A4 = 688
"""Width of an A4 page without its margins of 14 mm, in CSS pixels: (210 - 28) / 25.4 * 96."""


def browse(address, *options):
    """What Chromium writes to its standard output, and the lines of its console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def on_a_screen(pages, folder, *, dark):
    """What `measured` says of every page on a phone and a desktop, in light or dark mode. All of it is readable."""
    theme = f"--blink-settings=preferredColorScheme={'0' if dark else '1'}"
    found, console = measured(pages, folder, (PHONE, DESKTOP), theme)
    assert console == []
    for one in found:
        assert one["dark"] is dark
        assert one["scrollWidth"] <= one["width"], "no sideways scrolling"
        assert one["loaded"] == []
        assert one["pictures"], one["name"]
        assert all(picture["alternative"] for picture in one["pictures"])
        assert [text["text"] for text in one["texts"] if not text["reached"]] == []
        assert [text for text in one["texts"] if text["contrast"] < 4.5] == []
    return found


def measured(pages, folder, widths, *options, on_paper=False):
    """What measure.js says of every page at every width, and the lines of the console.

    A window is at least 500 pixels wide, an iframe is not.
    """
    frames = [
        f'<iframe name="{name}" src="{path.name}" style="border: 0; width: {width}px; height: 9000px"'
        f"{' data-print=1' if on_paper else ''}></iframe>"
        for name, path in pages.items()
        for width in widths
    ]
    script = Path(__file__).with_name("measure.js").read_text(encoding="utf-8")
    outer = folder / "measure.html"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><body>{"".join(frames)}'
        f"<script>{script}</script>",
        encoding="utf-8",
    )
    dom, console = browse(f"file://{outer}", "--allow-file-access-from-files", "--dump-dom", *options)
    found = json.loads(html.unescape(re.search(r'data-measured="([^"]*)"', dom)[1]))
    assert [(one["name"], one["width"]) for one in found] == [(name, width) for name in pages for width in widths]
    return found, console
