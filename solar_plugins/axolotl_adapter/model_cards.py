"""What a run writes about the model that it trains: its lineage and its card, from the first step on.

transformers, trl and peft make a card at several places, and push it: none knows the base, and some name the folder of
the cache. So their cards are made in a scratch folder, and only ours comes into the output and into checkpoints. It is
there before the first step, so also before the first push.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.lineage import LINEAGE_FILE, Lineage, Source, Stage, read
from solar_plugins.lineage.cards import license_warning, save
from solar_plugins.lineage.public import is_hub_id, public_name, recipe_text
from solar_plugins.lineage.record import (
    FoundModel,
    find_model,
    model_source,
    of_config,
    versions_of_stage,
    with_license,
)
from solar_plugins.logs import logger
from solar_plugins.recipe import REVISION_KEYS, read_yaml
from solar_plugins.storage.cards import CARD, read_card
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.marker import MARKER
from solar_plugins.upscaling.provenance import PROVENANCE_KEY

LOG = logger("model_cards")

DATASET_KEYS = ("datasets", "pretraining_dataset")
TEXT_TYPES = ("completion", "pretrain")
"""Values of ``datasets[].type`` for which the loss covers plain text."""
VALIDATED = "world_size"
"""A key that only Axolotl itself sets, while it normalizes a config (``normalize_config`` in axolotl/utils/config)."""


def describe_training(cfg: Mapping[str, Any], asked: Mapping[str, Any], trainer: Any) -> None:
    """Let a trainer write the lineage and the card, if its model is an upscaled one or comes from one.

    Whether that is so stands in the model's config, or in a file next to a local base: nothing else is read.

    Args:
        cfg: Axolotl's config.
        asked: The recipe with command-line overrides, as the user wrote it.
        trainer: Its trainer, on every rank.
    """
    config = getattr(trainer.model, "config", None)
    record = {PROVENANCE_KEY: getattr(config, PROVENANCE_KEY, None)}
    base = Path(str(cfg.get("base_model"))).expanduser()
    files = (LINEAGE_FILE, MARKER)  # A language model that is loaded from a larger one has a config of its own.
    if record[PROVENANCE_KEY] is None and not any((base / name).is_file() for name in files):
        return
    writes = trainer.is_world_process_zero()
    output = Path(trainer.args.output_dir)
    cards = _Cards(output, lambda: _lineage_of_run(cfg, asked, record, trainer))
    if hasattr(trainer.model, "create_or_update_model_card"):
        _replace_card_of_peft(trainer.model, cards, writes=writes)
    if writes:
        _make_cards_aside(trainer, cards)
        trainer.add_callback(_callback(cards))


class _Cards:
    """Writes the card of a run; a card that cannot be written never ends the training.

    Args:
        output: The folder that the run writes to.
        lineage: What the trained model is made from, once training starts.
    """

    def __init__(self, output: Path, lineage: Callable[[], Lineage]) -> None:
        self.output = output
        self._find_lineage = lineage
        self.lineage: Lineage | None = None
        """None before the training starts, and if it cannot be found out; then nothing is written."""

    def start(self) -> None:
        """Find out what the model is made from, and write the first card."""
        try:
            self.lineage = self._find_lineage()
        except (ValueError, OSError) as error:  # Pydantic's errors are among them.
            LOG.warning("the model card will not say what the model was made from: %s", " ".join(str(error).split()))
            return
        if warning := license_warning(self.lineage):
            LOG.warning("model card: %s", warning)
        self.write(self.output)

    def write(self, folder: Path, made: str = "") -> None:
        """Write lineage and card into the output, or into a checkpoint."""
        if self.lineage is None:
            return
        try:
            save(folder, self.lineage, old_card=read_card(self.output), made=made)
        except OSError as error:
            LOG.warning("%s: the model card cannot be written (%s)", folder / CARD, error.strerror or error)


def _replace_card_of_peft(model: Any, cards: _Cards, *, writes: bool) -> None:
    """Write our card where peft writes its own: with each save.

    On every rank: with a shared folder, the first rank of another node would write peft's card over ours. The
    replacement is a function, not a method of ours, because trl may deep-copy the model.
    """
    create = model.create_or_update_model_card

    def create_or_update_model_card(output_dir: str) -> None:
        if writes and cards.lineage is None:
            create(output_dir)
        elif writes:
            cards.write(Path(output_dir))

    model.create_or_update_model_card = create_or_update_model_card


def _make_cards_aside(trainer: Any, cards: _Cards) -> None:
    """Let the trainer make its cards in a scratch folder, from which ours takes the tables of results."""
    create, output = trainer.create_model_card, trainer.args.output_dir

    @wraps(create)
    def create_model_card(*args: Any, **kwargs: Any) -> Any:
        if cards.lineage is None:
            return create(*args, **kwargs)
        with tempfile.TemporaryDirectory() as scratch:
            trainer.args.output_dir = scratch
            try:
                return create(*args, **kwargs)
            finally:
                trainer.args.output_dir = output
                cards.write(cards.output, made=read_card(Path(scratch)))

    trainer.create_model_card = create_model_card


def _callback(cards: _Cards) -> Any:
    from transformers import TrainerCallback

    class WriteCards(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            cards.start()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            checkpoint = cards.output / f"checkpoint-{state.global_step}"
            if checkpoint.is_dir():
                cards.write(checkpoint)

        # A push of a checkpoint comes before `on_save`.
        on_push_begin = on_save

    return WriteCards()


def _lineage_of_run(
    cfg: Mapping[str, Any], asked: Mapping[str, Any], record: Mapping[str, Any], trainer: Any
) -> Lineage:
    hub_model = str(getattr(trainer, "hub_model_id", None) or cfg.get("hub_model_id") or "")
    result = Source(name=hub_model, on_hub=True) if is_hub_id(hub_model) else None
    return lineage_of_training(cfg, asked, result or Source(name=public_name(str(cfg.get("output_dir")))), record)


def lineage_of_training(
    cfg: Mapping[str, Any],
    asked: Mapping[str, Any],
    result: Source,
    record: Mapping[str, Any],
    copied: Path | None = None,
) -> Lineage:
    """The lineage of what a recipe trains.

    Args:
        cfg: Axolotl's config, with the base that is loaded.
        asked: The recipe as the user wrote it.
        result: What it writes.
        record: A map with the record of the loaded model's config.
        copied: A folder with the card of the base, if the base itself cannot be found.

    Raises:
        SolarError: The lineage of the base cannot be read.
        OSError: As above.
    """
    if VALIDATED in asked:  # A Ray worker gets Axolotl's own config, with all defaults.
        asked = read_yaml(Path(str(asked.get("axolotl_config_path"))))
    start, base = _start(cfg, record, copied)
    adapter = None if cfg.get("relora") else _word(cfg.get("adapter"))
    stage = Stage(
        kind=kind_of(cfg),
        result=result,
        sources=(base,),
        datasets=datasets_of(asked),
        adapter=adapter,
        recipe=recipe_text(asked),
        versions=versions_of_stage("axolotl", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed"),
    )
    again = bool(start.stages) and start.stages[-1] == stage  # The base is the output itself, and training resumes.
    return start if again else start.then(stage)


def _start(cfg: Mapping[str, Any], record: Mapping[str, Any], copied: Path | None) -> tuple[Lineage, Source]:
    """The lineage of the model or adapter that a run starts from, and its name in the stages."""
    adapter = cfg.get("lora_model_dir")
    if adapter and not cfg.get("merge_lora"):
        found = find_model(str(adapter))
        if found.lineage is not None:
            return found.lineage, found.lineage.result or found.source
    found = _base_of(cfg)
    lineage = found.lineage or of_config(record) or Lineage(bases=(found.source,))
    if found.lineage is None:
        lineage = with_license(lineage, found.folder or copied, lineage.bases[0].short)
        return lineage.model_copy(update={"earlier_unknown": lineage.plan is not None}), found.source
    named = found.source.on_hub or lineage.earlier_unknown
    return lineage, found.source if named else lineage.result or found.source


def _base_of(cfg: Mapping[str, Any]) -> FoundModel:
    name, revision = str(cfg["base_model"]), next((str(cfg[key]) for key in REVISION_KEYS if cfg.get(key)), None)
    try:
        return find_model(name, revision)
    except CheckpointError as error:
        LOG.warning("model card: the stages before this one are not known: %s", error)
        folder = Path(name).expanduser()
        return FoundModel(model_source(name, revision), folder if folder.is_dir() else None, None)


def kind_of(cfg: Mapping[str, Any]) -> str:
    """What a recipe trains, as `Stage.kind`."""
    if method := _word(cfg.get("rl")):
        return method
    if cfg.get("reward_model") or cfg.get("process_reward_model"):
        return "reward"
    entries = cfg.get("datasets") or []
    types = {str(entry.get("type")) for entry in entries if isinstance(entry, Mapping)}
    return "pretrain" if cfg.get("pretraining_dataset") or (types and types <= {*TEXT_TYPES}) else "sft"


def _word(value: Any) -> str | None:
    """The value of one of Axolotl's enumerations, as a kind or an adapter of a `Stage`."""
    return re.sub(r"[^a-z0-9_]", "_", str(getattr(value, "value", value)).lower()) if value else None


def datasets_of(asked: Mapping[str, Any]) -> tuple[Source, ...]:
    """The datasets that a recipe trains on. One that is a hub id and no folder is on the hub."""
    found: list[Source] = []
    for value in (asked.get(key) for key in DATASET_KEYS):
        for entry in value if isinstance(value, list) else [value]:
            name = entry.get("path") if isinstance(entry, Mapping) else entry
            revision = entry.get("revision") if isinstance(entry, Mapping) else None
            if isinstance(name, str) and name:
                found.append(model_source(name, revision if isinstance(revision, str) and revision else None))
    return tuple(dict.fromkeys(found))


def describe_merged_adapter(cfg: Mapping[str, Any], asked: Mapping[str, Any], adapter: Path, merged: Path) -> None:
    """Write the lineage and the card of a model that ``axolotl merge-lora`` wrote, if it comes from an upscaled one.

    Axolotl copies the small files of the base into it: its card, its lineage, and the plan file of one that was not
    trained. None of them stays.

    Args:
        cfg: Axolotl's config.
        asked: As for `describe_training`.
        adapter: The folder of the adapter.
        merged: The merged model.

    Raises:
        SolarError: A config of the merged model, or a lineage, cannot be read.
        OSError: A file cannot be read or written.
    """
    config = read_json_object(merged / CONFIG)
    if PROVENANCE_KEY not in config and not (merged / LINEAGE_FILE).is_file():
        return
    if (adapter / LINEAGE_FILE).is_file():
        trained = read(adapter)
    else:  # Trained before there were lineages: the recipe says how.
        record = {PROVENANCE_KEY: config.get(PROVENANCE_KEY)}
        trained = lineage_of_training(cfg, asked, Source(name=public_name(str(adapter))), record, merged)
    last = trained.stages[-1] if trained and trained.stages else None
    if trained is None or last is None:
        return
    stage = Stage(
        kind="merge_lora",
        result=Source(name=public_name(str(merged))),
        sources=(*last.sources, last.result),
        adapter=last.adapter,
        versions=versions_of_stage("axolotl", "torch", "transformers", "peft"),
    )
    lineage, base, old = trained.then(stage), _base_of(cfg).folder, read_card(merged)
    (merged / MARKER).unlink(missing_ok=True)
    save(merged, lineage, old_card="" if base is None or old == read_card(base) else old)
    if warning := license_warning(lineage):
        LOG.warning("%s: %s", merged / CARD, warning)
