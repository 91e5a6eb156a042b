import json
import random

import decontamination_rows
import pytest
from bench import REPOSITORY
from decontamination import CLEAN, KINDS, OURS, STORED, TOOLS, MixRun, agreement, exponent, page
from decontamination_rows import CHINESE, questions, write_rows

from solar_plugins.data.ngrams import NgramIndex, Place


def test_the_page_is_what_the_measured_figures_give():
    found = (REPOSITORY / "docs" / "decontamination.md").read_text()
    assert found == page(json.loads(STORED.read_text())), "run scripts/benchmarks/decontamination.py"


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Rows with 2 of each kind, their kinds, and an index of the questions."""
    text = [f"Sentence {i} is about the thing {i * 7} that nobody asked for in example {i * 3}." for i in range(60)]
    monkeypatch.setattr(decontamination_rows, "sentences", lambda: text)
    monkeypatch.setattr(decontamination_rows, "PLANTED_PER_KIND", 2)
    monkeypatch.setattr(decontamination_rows, "NUM_QUESTIONS", 40)
    write_rows(tmp_path, 50)
    kinds = json.loads((tmp_path / "kinds.json").read_text())
    asked = [json.loads(line)["question"] for line in (tmp_path / "bench.jsonl").read_text().splitlines()]
    found = [json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    return found, kinds, NgramIndex(13, ((one, Place("b", at)) for at, one in enumerate(asked, 1)))


def test_what_is_planted_is_found_or_known_to_be_missed(rows):
    texts, kinds, index = rows
    assert sorted({*kinds}) == sorted([*KINDS, CLEAN])
    missed = {kind for text, kind in zip(texts, kinds, strict=True) if index.match(text) is None}
    assert {CLEAN, "12 words"} <= missed <= {CLEAN, "12 words", "hyphens for spaces", "accents", "other numbers"}


def test_agreement_counts_rows_of_each_kind():
    kinds = ["copied", CLEAN, "copied", "Chinese"]
    found = agreement(kinds, {tool: [0, 3] for tool in TOOLS} | {OURS: [0, 2]})
    assert found["copied"] == {"rows": 2, **dict.fromkeys(TOOLS, 1), OURS: 2}
    assert (found["Chinese"][OURS], found["Chinese"][TOOLS[1]], found[CLEAN]["rows"]) == (0, 1, 1)


def test_an_exponent_is_that_of_a_power():
    runs = [MixRun(OURS, 1, rows, 0, 1.0, 3e-6 * rows**1.5, 1) for rows in (10, 100, 1000)]
    assert exponent(runs) == pytest.approx(1.5)


def test_questions_are_the_same_for_the_same_seed():
    held_out = [f"passage {i}" for i in range(30)]
    assert questions(held_out, random.Random(1)) == questions(held_out, random.Random(1))
    assert all(len(one) >= 13 for one in CHINESE)
