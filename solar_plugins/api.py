"""Everything that a plugin imports from this package.

The names here and their signatures are stable. A change to them raises the version and is listed in the changelog. All
other modules of `solar_plugins` may change in any release. Importing this module loads neither torch nor Axolotl.

* **Hooks**: `hookimpl` marks an implementation; `solar_plugins.plugins.hookspecs` documents each hook with an example.
* **Strategies**: `InitStrategy`, its arguments (`StrategyArgs`, `Count`, `LayerRanges`), and the `LayerPlan` of
  `PlannedLayer` entries that it returns. Layers can also come from a `Donor`, a model other than the base. Raise
  `PlanError` for arguments that are impossible for a base.
* **Initializers**: a `LayerInitializer` decides from a `BaseLayer` how to initialize each tensor of a new layer, and
  computes a `NewTensor` from tensors of the base. ``BaseLayer.decoder`` is not stable. Raise `CheckpointError` for a
  base that it does not support.
* **Formatters**: an `SFTFormatter` reads a `Row` as `Messages` (a list of `Message`), a `PreferenceFormatter` as a
  `PreferencePair`, an `UnpairedFormatter` as a `LabelledAnswer` (for KTO). Raise `RowError` for a bad row, and
  `NothingToLearn` for a valid row to leave out. `text`, `optional_text`, `question`, `single_turn`, `read_message`,
  `read_messages` and `answer_of` read the common formats.
* **Settings and recipes**: `DPOConfig`, `RecipePack`.
* **Checks**: `check_recipes` gives each `Finding` of ``solar recipes check``, for the tests of a package of recipes.
* **Events**: the `checkpoint_written` hook receives a `LayerPlan` and a `BaseCheckpoint`. Of `BaseCheckpoint`, the
  fields ``name``, ``directory``, ``config`` and ``revision`` are stable.
"""

from __future__ import annotations

from pathlib import Path

from solar_plugins.data.formatters.base import (
    LabelledAnswer,
    Message,
    Messages,
    NothingToLearn,
    PreferenceFormatter,
    PreferencePair,
    Row,
    RowError,
    SFTFormatter,
    UnpairedFormatter,
    optional_text,
    question,
    single_turn,
    text,
)
from solar_plugins.data.formatters.conversations import answer_of, read_message, read_messages
from solar_plugins.errors import CheckpointError, PlanError
from solar_plugins.plugins.dpo_configs import DPOConfig
from solar_plugins.plugins.markers import hookimpl
from solar_plugins.plugins.recipe_packs import RecipePack
from solar_plugins.sharing.findings import Finding
from solar_plugins.upscaling.base_model import BaseCheckpoint
from solar_plugins.upscaling.initializers.base import BaseLayer, LayerInitializer, NewTensor
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan, PlannedLayer
from solar_plugins.upscaling.strategies.base import Count, InitStrategy, LayerRanges, StrategyArgs

__all__ = [
    "BaseCheckpoint",
    "BaseLayer",
    "CheckpointError",
    "Count",
    "DPOConfig",
    "Donor",
    "Finding",
    "InitStrategy",
    "LabelledAnswer",
    "LayerInitializer",
    "LayerPlan",
    "LayerRanges",
    "Message",
    "Messages",
    "NewTensor",
    "NothingToLearn",
    "PlanError",
    "PlannedLayer",
    "PreferenceFormatter",
    "PreferencePair",
    "RecipePack",
    "Row",
    "RowError",
    "SFTFormatter",
    "StrategyArgs",
    "UnpairedFormatter",
    "answer_of",
    "check_recipes",
    "hookimpl",
    "optional_text",
    "question",
    "read_message",
    "read_messages",
    "single_turn",
    "text",
]


def check_recipes(path: Path, offline: bool = True) -> list[Finding]:
    """What ``solar recipes check`` finds in a recipe, a pipeline, or all files of a folder. Nothing is executed.

    Args:
        path: The file or folder.
        offline: Do not ask the Hub whether bases and datasets exist.

    Raises:
        SolarError: The path does not exist, or holds nothing that can be checked.
    """
    from solar_plugins.sharing.check import check  # Late: plugins import this module at every start.

    return check(path, offline=offline)
