"""A useful plugin: one strategy, one formatter of each kind, one DPO setting, recipes, and a listener."""

import random
from pathlib import Path

from pydantic import Field

from solar_plugins.api import (
    DPOConfig,
    InitStrategy,
    LayerPlan,
    Messages,
    PreferenceFormatter,
    PreferencePair,
    RecipePack,
    Row,
    SFTFormatter,
    StrategyArgs,
    hookimpl,
    question,
    single_turn,
    text,
)


class RepeatTopArgs(StrategyArgs):
    """Arguments of ``repeat_top``."""

    repeated_layers: int = Field(ge=1, description="layers at the top of the base that come twice")


def plan_repeat_top(num_layers: int, args: RepeatTopArgs) -> LayerPlan:
    """The entire base, then its last layers again."""
    return LayerPlan.from_sources(
        num_layers, [*range(num_layers), *range(num_layers - args.repeated_layers, num_layers)]
    )


@hookimpl
def register_init_strategies() -> list[InitStrategy[RepeatTopArgs]]:
    """One strategy."""
    return [InitStrategy("repeat_top", RepeatTopArgs, plan_repeat_top, summary="the base, then its top once more")]


def read_quiz(row: Row) -> Messages:
    """A riddle and its solution."""
    return single_turn(text(row.get("riddle"), "riddle"), text(row.get("solution"), "solution"), "Solve the riddle.")


def read_duel(row: Row, rng: random.Random) -> PreferencePair:
    """A riddle and two solutions."""
    prompt = question(text(row.get("riddle"), "riddle"), "Solve the riddle.")
    return PreferencePair(prompt, text(row.get("winner"), "winner"), text(row.get("loser"), "loser"))


@hookimpl
def register_sft_formatters() -> list[SFTFormatter]:
    """One formatter."""
    return [
        SFTFormatter(name="quiz", columns=("riddle", "solution"), to_messages=read_quiz, summary="riddle, solution")
    ]


@hookimpl
def register_preference_formatters() -> list[PreferenceFormatter]:
    """One formatter."""
    columns = ("riddle", "winner", "loser")
    return [PreferenceFormatter(name="duel", columns=columns, to_pair=read_duel, summary=", ".join(columns))]


@hookimpl
def register_dpo_configs() -> list[DPOConfig]:
    """One setting."""
    values = {"rl": "dpo", "rl_beta": 0.5, "learning_rate": 1e-5, "sequence_len": 64}
    return [DPOConfig(name="example", values=values, global_batch=2, source="nobody published this")]


@hookimpl
def register_recipes() -> list[RecipePack]:
    """One pack."""
    return [RecipePack("example", Path(__file__).parent / "recipes")]


@hookimpl
def checkpoint_written(path: Path, plan: LayerPlan) -> None:
    """Say what was made."""
    print(f"solar-plugins-example heard of {path.name} with {len(plan)} layers")
