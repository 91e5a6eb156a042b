"""The Axolotl plugin, called by Axolotl's hooks. The only module that imports Axolotl at its top."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import axolotl
from axolotl.integrations.base import BasePlugin
from axolotl.integrations.config import merge_input_args
from axolotl.utils.logging import get_logger
from pydantic import BaseModel

from solar_plugins.axolotl_adapter.bindings import bind, folder_by_content, is_called_without_plugins
from solar_plugins.axolotl_adapter.datasets import prepared_directory, use_prepared_datasets
from solar_plugins.axolotl_adapter.excepthook import errors_as_paragraphs
from solar_plugins.axolotl_adapter.ignored_keys import (
    plain,
    refuse_lost_options,
    refuse_misspelled_keys,
    with_overrides,
)
from solar_plugins.axolotl_adapter.merged_model import finish_merged_model
from solar_plugins.axolotl_adapter.model_cards import describe_merged_adapter, describe_training
from solar_plugins.axolotl_adapter.precision import lost_steps
from solar_plugins.axolotl_adapter.ranks import ready_together
from solar_plugins.axolotl_adapter.recipe_checks import changes, check_recipe, log_named_settings
from solar_plugins.axolotl_adapter.resume import refuse_other_plans_checkpoint
from solar_plugins.axolotl_adapter.run_record import record_run
from solar_plugins.axolotl_adapter.trained_parameters import (
    check_trained_parameters,
    compiled,
    refuse_frozen_new_layers,
    scale_old_rates,
)
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import ArgsError, CheckpointError, DataError
from solar_plugins.logs import speaks_for_node
from solar_plugins.recipe import REVISION_KEYS, Recipe, concerns_us, parse_recipe
from solar_plugins.solar_block import SolarArgs
from solar_plugins.upscaling.base_model import find_base, find_config
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.provenance import plan_of_model, requested_plan
from solar_plugins.upscaling.trained_layers import (
    new_patterns,
    refuse_frozen_identity_layers,
    trained_parts,
    training_keys,
)

TESTED_AXOLOTL = "0.21"
"""Major and minor version that `axolotl_adapter` was written for and is tested with. The core does not pin Axolotl."""

# Axolotl shows INFO only from loggers whose name starts with "axolotl".
LOG = get_logger("axolotl.solar_plugins.plugin")


class SolarPluginArgs(BaseModel):
    """The plugin's addition to Axolotl's schema."""

    solar: SolarArgs | None = None


class SolarPlugin(BasePlugin):  # type: ignore[misc]  # Axolotl ships no types
    """Upscales the recipe's base before Axolotl loads it, and reads the datasets with our formatters.

    For a recipe without a ``solar:`` block and without our formatters it only describes models that come from an
    upscaled one.
    """

    _row_lines: Sequence[str] = ()
    _tallies: Sequence[RowTally] = ()
    _asked: Mapping[str, Any] = MappingProxyType({})
    """The recipe with command-line overrides, as the user wrote it."""

    def register(self, cfg: MutableMapping[str, Any]) -> None:
        """Write the upscaled checkpoint, or find it in the cache, and set ``base_model`` to it.

        Axolotl calls this on every rank, after command-line overrides and before validation, when no process group
        exists yet; it may call it more than once.

        Raises:
            SolarError: The block or the base cannot be used.
        """
        with errors_as_paragraphs():
            refuse_lost_options(sys.argv)
            self._asked = plain(with_overrides(cfg))
            if not concerns_us(cfg):
                return
            if speaks_for_node():
                _warn_of_untested_axolotl()
            recipe = parse_recipe(with_overrides(cfg))
            log_named_settings(recipe)
            sets = check_recipe(recipe)
            for found in sets:
                bind(found)
            cfg.update(changes(recipe))
            if sets and is_called_without_plugins():
                cfg["dataset_prepared_path"] = str(folder_by_content(prepared_directory(recipe), sets))
            refuse_misspelled_keys(cfg, merge_input_args()[1])
            if recipe.solar is None:
                return
            cfg["solar"] = recipe.solar.model_dump(exclude_none=True)
            if speaks_for_node():
                _warn_of_lost_steps(recipe)
            if recipe.upscales:
                _upscale_base(cfg, recipe, recipe.solar)
            elif recipe.solar.train is not None:
                with ready_together("the base's config"):
                    decoder = _decoder_of_base(recipe)
                    plan = plan_of_model(decoder, recipe.base.name)
                    cfg.update(training_keys(recipe, recipe.solar.train, decoder, plan))

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Prepare the datasets with ``type: solar_plugins.<formatter>``, and let Axolotl load the result.

        Raises:
            SolarError: A dataset or the tokenizer cannot be used.
        """
        with errors_as_paragraphs():
            try:
                tallies = list[RowTally]()
                self._row_lines, self._tallies = use_prepared_datasets(cfg, tallies), tallies
            except OSError as error:
                raise DataError(
                    f"dataset_prepared_path: {error.filename or cfg.get('dataset_prepared_path')} cannot be read or "
                    f"written ({error.strerror or error}); make room or give write permission, or choose another "
                    "dataset_prepared_path"
                ) from None

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Describe the trained model on its card, if its base carries our record, whatever the recipe has.

        Also record the run, check that exactly the parameters of ``solar.train`` are trained, and set their learning
        rates.

        Raises:
            SolarError: Other layers would be trained.
        """
        with errors_as_paragraphs():
            describe_training(cfg, self._asked, trainer)
            if not concerns_us(cfg):
                return
            recipe = parse_recipe(cfg)
            record_run(trainer, recipe.output_dir, self._tallies)
            if recipe.solar is None or recipe.solar.train is None:
                return
            args, decoder = recipe.solar.train, _decoder_of_base(recipe)
            trained = trained_parts(args, decoder, plan_of_model(decoder, recipe.base.name))
            LOG.info("%s", check_trained_parameters(trainer.model, decoder, trained))
            if args.lr_scale:
                new = compiled(new_patterns(decoder, trained))
                scale_old_rates(trainer, lambda name: any(one.match(name) for one in new), args.lr_scale["old"])

    def post_train(self, cfg: Any, model: Any) -> None:
        """Log the row counts again at the end of the run. Axolotl calls this twice."""
        for line in self._row_lines:
            LOG.info("%s", line)
        self._row_lines = []

    def post_lora_merge(self, cfg: Any, adapter_path: str, output_path: str) -> None:
        """Give the merged model a card of its own if its base carries our record, and the tokenizer of its training.

        Raises:
            SolarError: A config of the merged model cannot be read.
        """
        with errors_as_paragraphs():
            describe_merged_adapter(cfg, self._asked, Path(adapter_path), Path(output_path))
            if not concerns_us(cfg):
                return
            finish_merged_model(
                Path(adapter_path),
                Path(output_path),
                save_jinja_files=cfg.get("tokenizer_save_jinja_files") is not False,
                trust_remote_code=parse_recipe(cfg).trusts_code,
            )

    def get_input_args(self) -> str:
        """The schema of the ``solar:`` block, which Axolotl merges into its own."""
        return f"{SolarPluginArgs.__module__}.{SolarPluginArgs.__name__}"


@cache  # Axolotl may register a plugin more than once.
def _warn_of_untested_axolotl() -> None:
    installed = str(axolotl.__version__)
    if installed.split(".")[:2] != TESTED_AXOLOTL.split("."):
        LOG.warning(
            "Axolotl %s is installed, but solar_plugins is tested with %s, so its checks of the recipe may be wrong. "
            "If something fails, try pip install 'axolotl==%s.*'",
            installed,
            TESTED_AXOLOTL,
            TESTED_AXOLOTL,
        )


def _warn_of_lost_steps(recipe: Recipe) -> None:
    lost = lost_steps(recipe)
    if lost and not recipe.inference:
        LOG.warning("%s", lost)


def _upscale_base(cfg: MutableMapping[str, Any], recipe: Recipe, solar: SolarArgs) -> None:
    if recipe.base_model_config not in (None, "", recipe.base_model):
        raise ArgsError(
            f"base_model_config: {recipe.base_model_config} would load the upscaled weights with another model's "
            "depth; remove the key, the upscaled checkpoint has its own config"
        )
    cfg.pop("base_model_config", None)
    with ready_together("the upscaled checkpoint"):
        try:
            upscaled = _upscaled_checkpoint(cfg, recipe, solar)
        except OSError as error:
            raise CheckpointError(
                f"base_model: {error.filename or recipe.base_model} cannot be read ({error.strerror or error}); "
                "check the path and its permissions"
            ) from None
    if upscaled is not None:
        cfg["base_model"] = str(upscaled)
        for key in REVISION_KEYS:
            cfg.pop(key, None)  # base_model is a local directory now, which has no revision.


def _decoder_of_base(recipe: Recipe) -> Decoder:
    return find_config(*recipe.base, trust_remote_code=recipe.trusts_code, trusted_keys=recipe.trusted_keys).decoder


def _upscaled_checkpoint(cfg: MutableMapping[str, Any], recipe: Recipe, solar: SolarArgs) -> Path | None:
    """The checkpoint that replaces the base; None if the base was already upscaled by this recipe."""
    base = find_base(*recipe.base, trust_remote_code=recipe.trusts_code, trusted_keys=recipe.trusted_keys)
    _refuse_other_layers(recipe, base.decoder)
    plan, already_grown = requested_plan(base.decoder, base.name, solar.init)
    if not already_grown:
        base, plan = base.with_donors(plan, solar.init)
    if solar.train is not None:
        cfg.update(training_keys(recipe, solar.train, base.decoder, plan))
    if already_grown:
        LOG.warning("%s was already upscaled by this plan (%s); used as it is, NOT upscaled again", base.name, plan)
        return None
    refuse_frozen_new_layers(recipe, base.decoder, plan)
    if solar.train is not None:
        refuse_frozen_identity_layers(solar.train, base.decoder, plan)
    checkpoint = ensure_checkpoint(base, plan, solar.cache_dir, copy=bool(solar.copies))
    refuse_other_plans_checkpoint(recipe, plan, checkpoint)
    return checkpoint


def _refuse_other_layers(recipe: Recipe, decoder: Decoder) -> None:
    """Axolotl sets these keys on the config that it loads the weights with; additional layers would be random."""
    changed = recipe.overrides_of_model_config
    for key in changed if isinstance(changed, Mapping) else ():
        if key in decoder.layer_keys:
            raise ArgsError(
                f"overrides_of_model_config: {key}: {changed[key]!r:.80} would load the upscaled weights with other "
                "layers than the plan's; remove the key, the upscaled checkpoint has its own config"
            )
