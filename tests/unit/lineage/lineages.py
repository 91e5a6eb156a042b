"""Lineages for the tests."""

from solar_plugins.lineage import License, Lineage, Source, Stage
from solar_plugins.upscaling.layer_plan import LayerPlan

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
BASE = Source(name="org/base", revision="a" * 40, on_hub=True)
UPSCALED, TUNED = Source(name="outputs/solar_dus"), Source(name="outputs/solar_sft")
ROWS, ON_HUB = Source(name="data/rows.jsonl"), Source(name="org/rows", on_hub=True)
MIT = License(id="mit", source="org/base")
UPSCALE = Stage(kind="upscale", result=UPSCALED, sources=(BASE,))
SFT = Stage(kind="sft", result=TUNED, sources=(UPSCALED,), datasets=(ON_HUB, ROWS), versions={"axolotl": "0.21.0"})


def lineage(*stages, **changes):
    return Lineage(**{"bases": (BASE,), "plan": PLAN.to_dict(), "licenses": (MIT,), "stages": stages} | changes)
