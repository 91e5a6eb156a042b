"""What `solar maths` writes: rows for training, dropped rows with reasons, a report and a card.

Nothing in it depends on time, speed or the address of the endpoint: the same recipe, problems and stored answers give
the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from solar_plugins import __version__
from solar_plugins.data.formatters.base import Message, PreferenceFormatter, RowError, SFTFormatter
from solar_plugins.data.formatters.columns import check_nothing_is_ignored
from solar_plugins.data.formatters.preference import built_in_preference_formatters
from solar_plugins.data.formatters.sft import built_in_sft_formatters
from solar_plugins.endpoints.store import Answer, SeenTexts
from solar_plugins.errors import DataError
from solar_plugins.maths.checks import Drop, Reason
from solar_plugins.maths.kinds import NEW_QUESTION_KINDS, PAIR_KINDS, Job, Row
from solar_plugins.maths.recipe import MathsArgs, Prompt
from solar_plugins.maths.seeds import Seeds
from solar_plugins.storage.atomic import new_partial_path, remove
from solar_plugins.tables import lines, table
from solar_plugins.text import printable

INSTRUCTIONS, PREFERENCES, DROPPED = "instructions.jsonl", "preferences.jsonl", "dropped.jsonl"
REPORT, REPORT_PAGE, CARD = "report.json", "report.md", "README.md"
FILES = (INSTRUCTIONS, PREFERENCES, DROPPED, REPORT, REPORT_PAGE, CARD)
FORMAT_VERSION = 1
SHOWN = 2
"""Accepted rows of each kind in the report."""
SHOWN_CHARACTERS = 1500
DROPPED_CHARACTERS = 4000
NOT_IN_REPORT: dict[str, Any] = {
    "endpoint": {"base_url", "key_variable", "concurrency", "timeout", "retries", "patience"},
    "seeds": {"path"},  # The names of the files are in `seed_files`.
    "prompts": True,  # Their versions are in the report.
    "store": True,
    "output": True,
    "limits": True,
}
"""Keys of a recipe on which the rows do not depend, or that hold paths of a machine."""


@dataclass(slots=True)
class KindReport:
    """The rows of one kind. ``tried`` is the sum of ``accepted`` and ``dropped``."""

    tried: int = 0
    accepted: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class MathsReport:
    """What became of every problem and every row."""

    recipe: dict[str, Any]
    solar_plugins: str
    prompts: dict[str, str]
    seed_files: dict[str, str]
    """SHA-256 of each, by its name."""
    seeds_read: int
    seeds_used: int
    seeds_dropped: dict[str, int]
    kinds: dict[str, KindReport]
    models: dict[str, int]
    """Accepted rows by the name under which the endpoint answered."""
    pairs: int
    cost: float | None
    files: dict[str, str]
    """SHA-256 of each file of rows."""
    examples: list[dict[str, Any]]

    @property
    def accepted(self) -> int:
        """All rows that passed."""
        return sum(one.accepted for one in self.kinds.values())


def check_output(output: Path, store: Path, inputs: Iterable[str]) -> None:
    """Only a folder that `solar maths` wrote itself is replaced.

    Raises:
        DataError: The folder holds an input, the store, or other files.
    """
    for path in (*inputs, str(store)):
        if Path(path).resolve().is_relative_to(output.resolve()):
            raise DataError(f"output: {output} contains {path}, which would be deleted; use another folder")
    if not output.exists():
        return
    others = sorted(one.name for one in output.iterdir() if one.name not in FILES) if output.is_dir() else [output.name]
    if others:
        raise DataError(
            f"output: {output} exists and contains files that `solar maths` did not write ({', '.join(others[:3])}); "
            "expected a new folder, or one written by `solar maths`. Move it away, or use another folder"
        )


class OutputWriter:
    """Writes the files next to the output folder, row by row.

    Args:
        args: The recipe.
        prompts: By name.
        seeds: The problems.
        seed_hashes: SHA-256 of their files, by short name.
        output: The final folder.
    """

    def __init__(
        self, args: MathsArgs, prompts: Mapping[str, Prompt], seeds: Seeds, seed_hashes: Mapping[str, str], output: Path
    ) -> None:
        self._args, self._seeds = args, seeds
        self._folder = new_partial_path(output)
        self._texts, self._requests = SeenTexts(), SeenTexts()
        self._sft = next(one for one in built_in_sft_formatters() if one.name == "metamath")
        self._pairs = next(one for one in built_in_preference_formatters() if one.name == "math_pairs")
        sampling = args.sampling
        self._sampling = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": args.seed,
        }
        self.report = MathsReport(
            recipe=args.model_dump(mode="json", exclude=NOT_IN_REPORT),
            solar_plugins=__version__,
            prompts={name: prompt.version for name, prompt in prompts.items()},
            seed_files=dict(seed_hashes),
            seeds_read=seeds.rows,
            seeds_used=seeds.count,
            seeds_dropped={},
            kinds={kind: KindReport() for kind in args.kinds},
            models={},
            pairs=0,
            cost=None,
            files={},
            examples=[],
        )

    def __enter__(self) -> Self:
        """The writer itself; the dropped problems are written first."""
        self._folder.mkdir()
        self._open = {name: _HashedFile(self._folder / name) for name in (INSTRUCTIONS, PREFERENCES, DROPPED)}
        for place, problem in self._seeds.dropped():
            _count(self.report.seeds_dropped, problem.reason)
            self._open[DROPPED].write({"type": "seed", "seed": place, **_described(problem)})
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not moved away."""
        for file in self._open.values():
            file.close()
        remove(self._folder)

    def add(self, job: Job, result: Row | Drop, answers: Mapping[bytes, Answer]) -> None:
        """Write a row, or the reason why there is none.

        Args:
            job: Where it comes from.
            result: The row, or the reason.
            answers: The stored answers that were used, by key.
        """
        kind = self.report.kinds[job.kind]
        kind.tried += 1
        for key, answer in answers.items():
            if self._requests.is_new(key.hex()):
                kind.requests += 1
                kind.prompt_tokens += answer.prompt_tokens
                kind.completion_tokens += answer.completion_tokens
        origin = {"type": job.kind, "seed": job.seed.place, "seed_id": job.seed.id, "sample": job.sample}
        try:
            if isinstance(result, Drop):
                raise result
            written = self._accepted(job, result, origin)
        except Drop as problem:
            self._example({**origin, "question": job.seed.question, **_described(problem)}, problem.reason, limit=1)
            _count(kind.dropped, problem.reason)
            self._open[DROPPED].write({**origin, **_described(problem)})
        else:
            kind.accepted += 1
            for name in result.models[-1:]:
                _count(self.report.models, name)
            self._example({"original_question": job.seed.question, **written}, "accepted", limit=SHOWN)

    def _accepted(self, job: Job, row: Row, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Write a row that passed the checks of its kind.

        Raises:
            Drop: It is a duplicate, or the formatter that reads it later would not accept it.
        """
        more = {
            **origin,
            "final_answer": row.final,
            "model": self._args.endpoint.model,
            "prompts": row.prompts,
            "sampling": self._sampling,
            "checks": row.checks,
        }
        instruction = {"query": row.query, "response": row.response, **more}
        pair = {
            "rephrased_question": row.query,
            "rephrased_answer": row.response,
            "original_answer": job.seed.answer,
            "original_question": job.seed.question,
            **more,
        }
        is_pair = job.kind in PAIR_KINDS
        try:
            _read_by_sft(self._sft, instruction)
            if is_pair:
                _read_by_preference(self._pairs, pair)
        except RowError as error:
            raise Drop(Reason.TEMPLATE, str(error), row.response) from None
        if job.kind in NEW_QUESTION_KINDS and not self._texts.is_new("question", job.kind, row.query):
            raise Drop(Reason.DUPLICATE, "question", row.query)
        if not self._texts.is_new("row", row.query, row.response):
            raise Drop(Reason.DUPLICATE, "question and answer", row.response)
        self._open[INSTRUCTIONS].write(instruction)
        if is_pair:
            self._open[PREFERENCES].write(pair)
            self.report.pairs += 1
        return instruction

    def _example(self, row: Mapping[str, Any], group: str, limit: int) -> None:
        of_group = sum(one["type"] == row["type"] and one["group"] == group for one in self.report.examples)
        if of_group < limit:
            shown = {name: value[:SHOWN_CHARACTERS] if isinstance(value, str) else value for name, value in row.items()}
            self.report.examples.append({"group": group, **shown})

    def finish(self) -> MathsReport:
        """Write the report and the card."""
        report = self.report
        for name, file in self._open.items():
            report.files[name] = file.close()
        if price := self._args.price:
            prompt_tokens = sum(one.prompt_tokens for one in report.kinds.values())
            completion_tokens = sum(one.completion_tokens for one in report.kinds.values())
            report.cost = round(price.of(prompt_tokens, completion_tokens), 6)
        order = list(report.kinds)
        report.examples.sort(key=lambda one: (order.index(one["type"]), one["group"] != "accepted"))
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(report)}
        for name, text in (
            (REPORT, json.dumps(content, indent=2, ensure_ascii=False) + "\n"),
            (REPORT_PAGE, report_page(report, self._args)),
            (CARD, card(report, self._args)),
        ):
            (self._folder / name).write_text(text, encoding="utf-8")
        return report

    def move_into(self, folder: Path) -> None:
        """Move the finished files into a folder of the same file system."""
        for name in FILES:
            (self._folder / name).rename(folder / name)


def _count(counts: dict[str, int], name: str) -> None:
    counts[str(name)] = counts.get(str(name), 0) + 1


def _most_common(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


class _HashedFile:
    """A JSON Lines file whose hash is known when it is closed."""

    def __init__(self, path: Path) -> None:
        self._file, self._hash = path.open("wb"), hashlib.sha256()

    def write(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._hash.update(line)
        self._file.write(line)

    def close(self) -> str:
        self._file.close()
        return self._hash.hexdigest()


def _described(problem: Drop) -> dict[str, str]:
    text = {"text": problem.text[:DROPPED_CHARACTERS]} if problem.text else {}
    return {"reason": str(problem.reason), **({"detail": problem.detail} if problem.detail else {}), **text}


def _read_by_sft(formatter: SFTFormatter, row: dict[str, Any]) -> None:
    check_nothing_is_ignored(row, formatter, formatter.to_messages(row))


def _read_by_preference(formatter: PreferenceFormatter, row: dict[str, Any]) -> None:
    pair = formatter.to_pair(row, random.Random(0))
    answers: list[Message] = [{"role": "assistant", "content": text} for text in (pair.chosen, pair.rejected)]
    check_nothing_is_ignored(row, formatter, [*pair.prompt, *answers])


# --- text


def as_text(report: MathsReport, output: Path) -> str:
    """The summary for a terminal."""
    text = [
        f"{output}: {report.accepted:,} instruction rows, {report.pairs:,} preference pairs "
        f"from {report.seeds_used:,} problems",
        "",
        *lines(table(*_kinds_table(report))),
        "",
    ]
    for kind, one in report.kinds.items():
        text += [f"{kind}: {count:,} dropped: {reason}" for reason, count in _most_common(one.dropped)]
    text += [
        f"problems: {count:,} of {report.seeds_read:,} not used: {reason}"
        for reason, count in _most_common(report.seeds_dropped)
    ]
    if report.cost is not None:
        text.append(f"cost: {report.cost:,.2f} {report.recipe['price']['currency']}")
    text.append(f"all dropped rows with reasons: {output / DROPPED}; examples: {output / REPORT_PAGE}")
    text.append(f"SHA-256 of {INSTRUCTIONS}: {report.files[INSTRUCTIONS]}")
    return printable("\n".join(text))


def _kinds_table(report: MathsReport) -> tuple[list[str], list[list[str]]]:
    headings = ["kind", "tried", "accepted", "share", "requests", "prompt tokens", "generated tokens"]
    rows = [
        [
            kind,
            f"{one.tried:,}",
            f"{one.accepted:,}",
            f"{one.accepted / max(one.tried, 1):.1%}",
            f"{one.requests:,}",
            f"{one.prompt_tokens:,}",
            f"{one.completion_tokens:,}",
        ]
        for kind, one in report.kinds.items()
    ]
    return headings, rows


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|---|{'---:|' * (len(headings) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def report_page(report: MathsReport, args: MathsArgs) -> str:
    """The report as Markdown: what was accepted and dropped, with examples of each."""
    text = ["# Report of solar maths", "", *_summary(report, args), "", "## Dropped", ""]
    text += _markdown_table(["kind", "reason", "rows"], _dropped_rows(report))
    text += ["", "## Examples", ""]
    for example in report.examples:
        text += [f"### {example['type']}: {example['group']}", "", f"{example['seed']}, sample {example['sample']}", ""]
        for name in ("question", "original_question", "query", "response", "final_answer", "detail", "text"):
            if value := example.get(name):
                text += [f"{name}:", "", *_fenced(value), ""]
    return "\n".join(text).rstrip() + "\n"


def _dropped_rows(report: MathsReport) -> Iterator[list[str]]:
    for reason, count in _most_common(report.seeds_dropped):
        yield ["problems", reason, f"{count:,}"]
    for kind, one in report.kinds.items():
        for reason, count in _most_common(one.dropped):
            yield [kind, reason, f"{count:,}"]


def _fenced(text: str) -> list[str]:
    """A block of literal text; the fence is longer than any in the text."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}text", text, fence]


def _summary(report: MathsReport, args: MathsArgs) -> list[str]:
    source = f"{args.seeds.hub_id}" if args.seeds.hub_id else ", ".join(Path(path).name for path in args.seeds.path)
    at = f" at revision {args.seeds.revision}" if args.seeds.revision else ""
    names = ", ".join(f"{name} ({count:,} rows)" for name, count in _most_common(report.models))
    text = [
        f"{report.accepted:,} instruction rows and {report.pairs:,} preference pairs from {report.seeds_used:,} of "
        f"{report.seeds_read:,} problems.",
        "",
        f"- Problems: {source}{at} (license: {args.seeds.license})",
        f"- Model: {args.endpoint.model} (license: {args.endpoint.license or 'not stated in the recipe'})",
        f"- The endpoint answered as: {names or 'nothing'}",
        f"- Sampling: temperature {args.sampling.temperature:g}, top_p {args.sampling.top_p:g}, at most "
        f"{args.sampling.max_tokens:,} tokens, seed {args.seed}",
        f"- Prompts: {', '.join(sorted(report.prompts.values()))}",
    ]
    if report.cost is not None and args.price:
        text.append(f"- Cost: {report.cost:,.2f} {args.price.currency}")
    return [*text, "", *_markdown_table(*_kinds_table(report))]


def card(report: MathsReport, args: MathsArgs) -> str:
    """The dataset card, with license and origin."""
    import yaml

    front: dict[str, Any] = {
        "license": args.seeds.license,
        "task_categories": ["text-generation"],
        "tags": ["mathematics", "synthetic", "solar_plugins"],
        "configs": [
            {"config_name": Path(name).stem, "data_files": name}
            for name, rows in ((INSTRUCTIONS, report.accepted), (PREFERENCES, report.pairs))
            if rows
        ],
    }
    if args.seeds.hub_id:
        front["source_datasets"] = [args.seeds.hub_id]
    text = [
        f"---\n{yaml.safe_dump(front, sort_keys=False).rstrip()}\n---",
        "",
        "# Synthetic mathematics data",
        "",
        f"Written by solar_plugins {report.solar_plugins}, `solar maths`.",
        "A language model rephrased or solved problems in the manner of SOLAR's Synth. Math-Instruct and Synth. "
        "Math-Alignment (arXiv:2312.15166, sec. 4.1) and of MetaMath (arXiv:2309.12284). The final answer of every row "
        "equals the one of its problem; other statements in the texts were not checked.",
        "",
        *_summary(report, args),
        "",
        "## Licenses",
        "",
        f"The problems have the license {args.seeds.license}. The texts were generated by {args.endpoint.model}, whose "
        f"license is {args.endpoint.license or 'not stated in the recipe'}; its terms may restrict how its output may "
        "be used and named.",
        "",
        "## Files",
        "",
        *_markdown_table(
            ["file", "rows", "read by"],
            [
                [f"`{INSTRUCTIONS}`", f"{report.accepted:,}", "`type: solar_plugins.metamath`"],
                [f"`{PREFERENCES}`", f"{report.pairs:,}", "`type: solar_plugins.math_pairs`"],
                [f"`{DROPPED}`", f"{_num_dropped(report):,}", "dropped rows with reasons; not for training"],
            ],
        ),
        "",
        "Every row names its problem (`seed`, `seed_id`), model, prompts, sampling settings and checks. "
        f"`{REPORT_PAGE}` has examples of accepted and dropped rows.",
    ]
    return "\n".join(text) + "\n"


def _num_dropped(report: MathsReport) -> int:
    return sum(report.seeds_dropped.values()) + sum(sum(one.dropped.values()) for one in report.kinds.values())
