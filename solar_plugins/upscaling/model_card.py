"""The README.md of an up-scaled checkpoint: says what was done, to what, and what has to follow. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from solar_plugins.upscaling.layer_plan import LayerPlan, start_words

INHERITED_FIELDS = ("license", "license_name", "license_link", "language")


UNTRAINED = """\
**The weights have not been trained since.** The seam costs quality, most of all in generation, until the whole model
has been trained further. `solar_plan.json` holds the exact plan.
"""

TRAINED = """\
The model has been trained since: an adapter (LoRA) was merged into the upscaled weights with `axolotl merge-lora`.
`config.json` holds the exact plan, under `solar_plugins`.
"""


def model_card(base_name: str, plan: LayerPlan, base_card: str | None, *, on_hub: bool, trained: bool = False) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        base_name: Name of the base, fit for publication.
        plan: What was done.
        base_card: The base's own card. Only its licence and language are taken over.
        on_hub: Whether ``base_name`` is a hub id, so that the hub can link to it.
        trained: Whether the weights were trained after they were upscaled.
    """
    inherited = _front_matter(base_card or "")
    front = {field: inherited[field] for field in INHERITED_FIELDS if field in inherited}
    front |= {"base_model": [base_name]} if on_hub else {}
    front |= {"library_name": "transformers", "tags": ["depth-up-scaling", "solar_plugins"]}
    rows = "\n".join(_range_rows(plan))
    seams = "".join(
        f"- below layer {seam.position}: base layer {seam.below} feeds base layer {seam.above} (distance "
        f"{seam.distance})\n"
        for seam in plan.seams()
    )
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {base_name}, {plan.base_layers} layers up-scaled to {len(plan)}

Made by `solar_plugins` from `{base_name}` by stacking copies of its decoder layers
(depth up-scaling, Kim et al. 2023, arXiv:2312.15166). Everything outside the layers is the
base's{"" if trained else ", unchanged"}.

| new layers | base layers | initialised as |
|---|---|---|
{rows}

Seams, where layers meet that were not neighbours in the base:

{seams or "- none" + chr(10)}
{TRAINED if trained else UNTRAINED}"""


def _range_rows(plan: LayerPlan) -> list[str]:
    rows, position = [], 0
    for part in plan.ranges():
        count = part.end - part.start
        rows.append(f"| {position} to {position + count - 1} | {part.start} to {part.end - 1} | {start_words(part)} |")
        position += count
    return rows


def _front_matter(card: str) -> Mapping[str, Any]:
    parts = card.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front = yaml.load(parts[1], Loader=yaml.BaseLoader)  # BaseLoader: `no` is Norwegian, not false
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}  # A base's card that is broken must not stop anybody; its licence files are copied in any case.
    return front if isinstance(front, Mapping) else {}
