"""Everything a plugin imports from this package.

The names here and their signatures are stable: a test freezes them, a change raises the version and is noted in the
changelog. Any other module of `solar_plugins` may change in any release. Importing this module is fast: it loads
neither torch nor Axolotl.

* **Hooks**: `hookimpl` marks an implementation; `solar_plugins.plugins.hookspecs` documents each hook with an example.
* **Strategies**: `InitStrategy`, its arguments (`StrategyArgs`, `Count`, `LayerRanges`), and the `LayerPlan` of
  `PlannedLayer` entries that it returns, some of them perhaps of a `Donor`, a model other than the base. `PlanError`
  refuses arguments that are impossible for a base.
* **Initializers**: a `LayerInitializer` decides from a `BaseLayer` how each tensor of a new layer starts, and computes
  a `NewTensor` from tensors of the base. Of a `BaseLayer`, ``decoder`` is not stable. `CheckpointError` refuses a base.
* **Formatters**: an `SFTFormatter` reads a `Row` as `Messages` (a list of `Message`), a `PreferenceFormatter` as a
  `PreferencePair`, an `UnpairedFormatter` as a `LabelledAnswer` (for KTO). `RowError` rejects a row, `NothingToLearn`
  leaves out a sound one. `text`, `optional_text`, `question`, `single_turn`, `read_message`,
  `read_messages` and `answer_of` read the common shapes.
* **Settings and recipes**: `DPOConfig`, `RecipePack`.
* **Events**: the `checkpoint_written` hook receives a `LayerPlan` and a `BaseCheckpoint`. Of the latter, the fields
  ``name``, ``directory``, ``config`` and ``revision`` are stable.
"""

from __future__ import annotations

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
    "hookimpl",
    "optional_text",
    "question",
    "read_message",
    "read_messages",
    "single_turn",
    "text",
]
