"""The positions in the picture of a layer plan. Pure; all lengths are points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from solar_plugins.upscaling.layer_plan import LayerPlan, Seam

MARGIN = 14.0
MIN_WIDTH = 330.0
COLUMN_WIDTH = 52.0
BAND_WIDTH = 104.0
LABEL_INDENT = 28.0
NUMBER_WIDTH = 26.0
"""Room next to a column for the numbers of layers."""
HEAD_HEIGHT = 74.0
FOOT_HEIGHT = 40.0
LAYER_HEIGHT, MAX_LAYER_HEIGHT = 13.0, 24.0
MIN_COLUMN_HEIGHT, MAX_COLUMN_HEIGHT = 190.0, 620.0
MODEL_GAP = 20.0
"""Between the base and a donor above it, for the donor's name."""
MANY_SEAMS = 16
"""From here on labels and lines are smaller."""
MIN_NUMBER_SIZE = 5.0
"""Smaller numbers are not readable; the boxes then stay empty."""


@dataclass(frozen=True)
class PlanLayout:
    """The positions in the picture of one plan. The origin is the lower left corner."""

    plan: LayerPlan

    @cached_property
    def seams(self) -> tuple[Seam, ...]:
        """The plan's seams, bottom first."""
        return self.plan.seams()

    @property
    def label_size(self) -> float:
        """Font size of a seam's label."""
        return 8.5 if len(self.seams) <= MANY_SEAMS else 7.0

    @property
    def label_distance(self) -> float:
        """The least distance between the middles of two labels."""
        return self.label_size * 1.45

    @property
    def column_height(self) -> float:
        """Height of the upscaled model's column, or of the base's and the donors' if that is higher."""
        layers = max(len(self.plan), sum(self.depths))
        wanted = min(max(layers * LAYER_HEIGHT, MIN_COLUMN_HEIGHT), MAX_COLUMN_HEIGHT)
        return max(wanted, len(self.seams) * self.label_distance)

    @property
    def seam_gap(self) -> float:
        """The gap between two layers at a seam."""
        return min(7.0, 0.5 * self.column_height / len(self.plan))

    @property
    def layer_height(self) -> float:
        """Height of one layer."""
        new_layers = (self.column_height - self.seam_gap * len(self.seams)) / len(self.plan)
        return min(new_layers, (self.column_height - self._model_gaps) / sum(self.depths), MAX_LAYER_HEIGHT)

    @property
    def inset(self) -> float:
        """Free space on either side of a layer."""
        return min(0.6, self.layer_height * 0.08)

    @property
    def number_size(self) -> float:
        """Font size of the number in a layer's box."""
        return min(7.5, self.layer_height * 0.72)

    @property
    def base_x(self) -> float:
        """Left edge of the base's column."""
        return MARGIN + 14

    @property
    def new_x(self) -> float:
        """Left edge of the upscaled model's column."""
        return self.base_x + COLUMN_WIDTH + BAND_WIDTH

    @property
    def width(self) -> float:
        """Width of the picture."""
        longest = max((len(seam_label(self.plan, seam)) for seam in self.seams), default=0)
        labels = LABEL_INDENT + longest * self.label_size * 0.57  # The width of a letter in the widest font.
        return max(self.new_x + COLUMN_WIDTH + max(labels if longest else 0.0, NUMBER_WIDTH) + MARGIN, MIN_WIDTH)

    @property
    def height(self) -> float:
        """Height of the picture."""
        return FOOT_HEIGHT + self.column_height + HEAD_HEIGHT

    @property
    def depths(self) -> list[int]:
        """Of the base and of each donor, which are stacked."""
        return [self.plan.base_layers, *(donor.num_layers or 0 for donor in self.plan.donors)]

    @property
    def _model_gaps(self) -> float:
        return MODEL_GAP * len(self.plan.donors)

    def base_y(self, layer: int, model: int = 0) -> float:
        """Lower edge of a layer of the base or a donor. Past the last layer: the upper edge of the column."""
        free = self.column_height - self._model_gaps - sum(self.depths) * self.layer_height
        below = sum(self.depths[:model]) * self.layer_height + model * MODEL_GAP
        return FOOT_HEIGHT + free / 2 + below + layer * self.layer_height

    def new_y(self, position: int) -> float:
        """Lower edge of a layer of the upscaled model."""
        below = sum(seam.position <= position for seam in self.seams)
        used = len(self.plan) * self.layer_height + len(self.seams) * self.seam_gap
        return FOOT_HEIGHT + (self.column_height - used) / 2 + position * self.layer_height + below * self.seam_gap

    def seam_y(self, seam: Seam) -> float:
        """Middle of the gap at a seam."""
        return self.new_y(seam.position) - self.seam_gap / 2

    @cached_property
    def label_ys(self) -> list[float]:
        """Middles of the labels, as close to their seams as possible without overlap."""
        wanted = [self.seam_y(seam) for seam in self.seams]
        return spread(wanted, self.label_distance, FOOT_HEIGHT, FOOT_HEIGHT + self.column_height)


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """The positions from ``low`` to ``high`` nearest to ``wanted`` (least squares), ``distance`` or more apart.

    Args:
        wanted: Ascending positions.
        distance: Small enough that all fit between ``low`` and ``high``.
        low: The lowest position.
        high: The highest position.

    Example:
        >>> spread([50, 51, 99], 10, 0, 100)
        [45.5, 55.5, 99.0]
    """
    # Pool adjacent violators: without the steps of `distance`, positions only have to ascend.
    pools: list[tuple[float, int]] = []
    for index, position in enumerate(wanted):
        total, count = position - index * distance, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            lower_total, lower_count = pools.pop()
            total, count = total + lower_total, count + lower_count
        pools.append((total, count))
    top = high - (len(wanted) - 1) * distance
    levels = [min(max(total / count, low), top) for total, count in pools for _ in range(count)]
    return [level + index * distance for index, level in enumerate(levels)]


def seam_label(plan: LayerPlan, seam: Seam) -> str:
    """The label of a seam."""
    return f"seam: {plan.seam_words(seam, short=True)}"
