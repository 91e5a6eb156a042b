"""The model card (README.md) of an upscaled checkpoint. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from solar_plugins.storage.cards import split_card
from solar_plugins.upscaling.layer_plan import LayerPlan, start_words

INHERITED_FIELDS = ("license", "license_name", "license_link", "language")


UNTRAINED = """\
**This model has not been trained after up-scaling.** Its quality is lower than the base's, most visibly in generated
text, until it is trained. `solar_plan.json` has the exact layer plan.
"""


def model_card(base_name: str, plan: LayerPlan, base_card: str | None, *, on_hub: bool) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        base_name: Public name of the base.
        plan: The plan it was upscaled by.
        base_card: The base's own card, from which the license and the language are inherited.
        on_hub: Whether ``base_name`` is a hub id, so that the hub can link to it.
    """
    inherited, _ = split_card(base_card or "")
    front = {field: inherited[field] for field in INHERITED_FIELDS if field in inherited}
    front |= _parents([base_name] if on_hub else [], plan)
    front |= {"library_name": "transformers", "tags": ["depth-up-scaling", "solar_plugins"]}
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {base_name}, {plan.base_layers} layers upscaled to {len(plan)}

Created with `solar_plugins` from `{base_name}` by stacking copies of its decoder layers{_others(plan)}
(depth up-scaling, Kim et al. 2023, arXiv:2312.15166). Everything outside the decoder layers comes from the
base, unchanged.

{plan_section(plan)}
{UNTRAINED}"""


def plan_section(plan: LayerPlan) -> str:
    """A plan in words, for a card: a table of layers, and the seams."""
    rows = "\n".join(_range_rows(plan))
    seams = "".join(f"- below layer {seam.position}: {plan.seam_words(seam)}\n" for seam in plan.seams())
    return f"""\
| new layers | {"layers" if plan.donors else "base layers"} | initialized as |
|---|---|---|
{rows}

Seams, where adjacent layers were not adjacent in the base (numbered as in their own model):

{seams or "- none" + chr(10)}"""


def _parents(hub_base: list[str], plan: LayerPlan) -> dict[str, Any]:
    """Front matter that links to the hub models that this one was created from."""
    names = hub_base + [donor.name for donor in plan.donors if donor.revision]
    found = {"base_model": list(dict.fromkeys(names))} if names else {}
    return found | ({"base_model_relation": "merge"} if names and plan.donors else {})


def _others(plan: LayerPlan) -> str:
    names = " and ".join(f"`{plan.model_words(number)}`" for number in range(1, len(plan.donors) + 1))
    return f", and layers of {names}" if names else ""


def _range_rows(plan: LayerPlan) -> list[str]:
    rows, position = [], 0
    for part in plan.ranges():
        count = part.end - part.start
        model = f"{plan.model_words(part.model)} " if plan.donors else ""
        place, layers = f"{position} to {position + count - 1}", f"{model}{part.start} to {part.end - 1}"
        rows.append(f"| {place} | {layers} | {start_words(part)} |")
        position += count
    return rows
