"""The report as text in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from solar_plugins.report import content
from solar_plugins.report.chain_terminal import show_chain
from solar_plugins.report.content import Report, Role
from solar_plugins.report.sentences import curve_note, headline
from solar_plugins.report.training_log import Series, smoothed
from solar_plugins.tables import show, table
from solar_plugins.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

CHART_COLUMNS, CHART_ROWS = 60, 8
NUM_SEAMS_SHOWN = 8
STYLES: Mapping[Role, str] = {"base": "blue", "upscaled": "red", "trained": "green"}

HELD_OUT_MARK = "●"
BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a braille character, by row from the top and by column (Unicode block U+2800)."""


def show_report(report: Report, console: Console | None = None) -> None:
    """Print the report.

    Args:
        report: What was measured.
        console: Where to; the standard output by default.
    """
    from rich.console import Console
    from rich.text import Text

    out = console or Console()
    out.print()
    out.print(Text(printable(content.title(report)), style="bold"))
    out.print(Text(headline(report)))
    if report.is_chain:
        show_chain(report, out, STYLES)
    else:
        show(_loss_table(report), out)
        out.print(Text(_measured_on(report), style="dim"))
        out.print(_curve_chart(report))
        out.print(_layers(report))
    for index, prompt in enumerate(report.prompts):
        out.print()
        out.print(_continuations(report, index, prompt))
    out.print()
    out.print(Text(f"page: {report.html}\nfigures: {report.json}"), soft_wrap=True)


def _loss_table(report: Report) -> Table:
    headings = ["model", "layers", "parameters", "held-out loss", "perplexity", "above base"]
    rows = [
        [
            model.name,
            str(model.num_layers),
            content.parameters(model.num_parameters),
            content.number(model.loss.nats_per_token, 3),
            content.number(model.loss.perplexity, 2),
            "" if model is report.base else " ".join(content.above_base(model.loss, report.base.loss)),
        ]
        for _, model in report.rows()
    ]
    return table(headings, rows, styles=[STYLES[role] for role, _ in report.rows()])


def _measured_on(report: Report) -> str:
    tokens, where = report.base.loss.tokens, report.conditions.hardware
    return f"nats per token over {tokens:,} held-out tokens, {where.dtype} on {where.device}"


def _curve_chart(report: Report) -> Text:
    from rich.text import Text

    log, chart = report.stages[0].log, Text()
    if log is not None and log.loss.points:
        chart = _drawn(log.loss)
        chart.append("training", style=STYLES["base"])
        chart.append("  ")
        chart.append(f"{HELD_OUT_MARK} held-out\n" if log.loss.held_out else "\n", style=STYLES["upscaled"])
    chart.append(curve_note(log), style="dim")
    return chart


def _drawn(series: Series) -> Text:
    from rich.text import Text

    points = [*smoothed(series.train), *series.held_out]
    low, high = min(point.value for point in points), max(point.value for point in points)
    lines = unicode_chart(series, CHART_COLUMNS, CHART_ROWS)
    chart = Text("loss by optimizer step\n", style="bold")
    for row, line in enumerate(lines):
        label = f"{high:.2f}" if row == 0 else f"{low:.2f}" if row == len(lines) - 1 else ""
        chart.append(f"{label:>7} │", style="dim not bold")
        for character in line:
            chart.append(character, style=f"not bold {STYLES['upscaled' if character == HELD_OUT_MARK else 'base']}")
        chart.append("\n")
    first, last = min(point.step for point in points), max(point.step for point in points)
    steps = f"{first:<{CHART_COLUMNS - len(str(last))}}{last}"
    chart.append(f"{'':7} └{'─' * CHART_COLUMNS}\n{'':9}{steps}\n", style="dim not bold")
    return chart


def _layers(report: Report) -> Text:
    from rich.text import Text

    seams = report.plan.seams()
    text = Text(f"\nlayers {report.plan}\n")
    for seam in seams[:NUM_SEAMS_SHOWN]:
        words = f"  seam below layer {seam.position}: {report.plan.seam_words(seam, short=True)}\n"
        text.append(words, style=STYLES["upscaled"])
    if len(seams) > NUM_SEAMS_SHOWN:
        text.append(f"  and {len(seams) - NUM_SEAMS_SHOWN} more seams\n", style=STYLES["upscaled"])
    text.rstrip()
    return text


def _continuations(report: Report, index: int, prompt: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = Text(printable(prompt) + ("" if report.conditions.answers else " …"), style="bold")
    columns = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    columns.add_column(no_wrap=True)
    columns.add_column(overflow="fold")
    for role, model in report.rows():
        said = Text(" ".join(printable(model.continuations[index]).split()) or content.NOTHING)
        columns.add_row(Text(model.name, style=STYLES[role]), said)
    return columns


def unicode_chart(series: Series, columns: int, rows: int) -> list[str]:
    """Training as a line of braille dots, held-out values as marks over it; the top line first."""
    train = smoothed(series.train)
    points = [*train, *series.held_out]
    low, high = min(point.value for point in points), max(point.value for point in points)
    first, last = min(point.step for point in points), max(point.step for point in points)
    wide, tall = columns * 2 - 1, rows * 4 - 1

    def dot_of(step: float, value: float) -> tuple[int, int]:
        x, y = (step - first) / max(last - first, 1), (high - value) / (high - low or 1.0)
        return round(x * wide), round(y * tall)

    cells = [[0] * columns for _ in range(rows)]
    for x, y in _line([dot_of(*point) for point in train]):
        cells[y // 4][x // 2] |= BRAILLE_BITS[y % 4][x % 2]
    lines = [[chr(0x2800 + bits) if bits else " " for bits in line] for line in cells]
    for x, y in (dot_of(*point) for point in series.held_out):
        lines[y // 4][x // 2] = HELD_OUT_MARK
    return ["".join(line) for line in lines]


def _line(corners: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Every dot on the way from corner to corner."""
    dots = list(corners[:1])
    for (x, y), (next_x, next_y) in pairwise(corners):
        steps = max(abs(next_x - x), abs(next_y - y))
        dots += [
            (x + round((next_x - x) * step / steps), y + round((next_y - y) * step / steps))
            for step in range(1, steps + 1)
        ]
    return dots
