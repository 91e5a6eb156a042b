"""The cards of a run, with a trainer that makes and pushes cards as those of transformers and trl do."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from solar_plugins import SolarPlugin, lineage
from solar_plugins.axolotl_adapter.model_cards import datasets_of, kind_of
from solar_plugins.errors import CheckpointError
from solar_plugins.lineage import LINEAGE_FILE, Source, Stage
from solar_plugins.storage.cards import split_card
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import MARKER

PLAN = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
ROWS = [{"path": "org/rows", "revision": "v1", "type": "alpaca"}, {"path": "/data/me/rows.jsonl", "type": "alpaca"}]


@pytest.fixture
def upscaled(base, tmp_path, monkeypatch):
    """An upscaled checkpoint in ``outputs/solar_dus`` of the working directory."""
    monkeypatch.chdir(tmp_path)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    write_checkpoint(find_base(str(base)), PLAN, tmp_path / "outputs" / "solar_dus")
    return "outputs/solar_dus"


class Trainer:
    """Makes cards as transformers' does, and stops at each event to show the card."""

    def __init__(self, base, output, *, main=True, adapter=False, hub_model_id=None):
        config = json.loads((Path(base) / "config.json").read_text())
        self.model = SimpleNamespace(config=SimpleNamespace(**config))
        if adapter:
            self.model.create_or_update_model_card = self.card_of_peft
        self.args, self.main, self.hub_model_id = SimpleNamespace(output_dir=output), main, hub_model_id
        self.callbacks, self.state = [], SimpleNamespace(global_step=3)

    def is_world_process_zero(self):
        return self.main

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def create_model_card(self, model_name=None):
        if self.main:
            text = "---\ntags: [generated_from_trainer]\n---\nIt has been trained using [TRL](x)\n"
            Path(self.args.output_dir, "README.md").write_text(f"{text}## Training procedure\n\n7\n")
        return ["tag"]

    def card_of_peft(self, folder):
        Path(folder, "README.md").write_text("---\nbase_model: /cache/upscaled-x\n---\n")

    def event(self, name):
        for callback in self.callbacks:
            getattr(callback, name)(self.args, self.state, None)


def described(cfg, trainer):
    """What the plugin does from the recipe to the first step."""
    plugin = SolarPlugin()
    plugin.register(cfg)
    plugin.post_trainer_create(cfg, trainer)
    trainer.event("on_train_begin")
    return trainer


def recipe(base, output="outputs/solar_sft", **more):
    return {"base_model": base, "output_dir": output, "datasets": ROWS} | more


def front(folder):
    return split_card((Path(folder) / "README.md").read_text())[0]


def test_the_card_is_there_before_the_first_step(upscaled):
    """The recipe has no key of ours."""
    described(recipe(upscaled, hub_token="hf_x", learning_rate=0.1), Trainer(upscaled, "outputs/solar_sft"))
    found = lineage.read(Path("outputs/solar_sft"))
    assert [stage.kind for stage in found.stages] == ["upscale", "sft"]
    assert found.stages[0].result == found.stages[1].sources[0] == Source(name="outputs/solar_dus")
    assert found.stages[1].datasets == (Source(name="org/rows", revision="v1", on_hub=True), Source(name="rows.jsonl"))
    assert yaml.safe_load(found.stages[1].recipe)["learning_rate"] == 0.1
    assert "hub_token" not in found.stages[1].recipe
    assert "/data/me" not in found.stages[1].recipe
    assert not found.earlier_unknown
    assert (front("outputs/solar_sft")["license"], front("outputs/solar_sft")["datasets"]) == ("mit", ["org/rows"])


def test_a_card_of_the_trainer_is_replaced_and_never_in_the_output(upscaled, monkeypatch):
    trainer = Trainer(upscaled, "out")
    seen = []
    create = trainer.create_model_card

    def watched():
        made = create()
        seen.append((Path("out") / "README.md").read_text())
        return made

    trainer.create_model_card = watched
    described(recipe(upscaled, "out"), trainer)
    assert trainer.create_model_card() == ["tag"]
    assert "Stages" in seen[0]
    text = (Path("out") / "README.md").read_text()
    assert "## Training procedure\n\n7" in text
    assert {"generated_from_trainer", "depth-up-scaling", "axolotl", "solar_plugins"} <= set(front("out")["tags"])
    assert trainer.args.output_dir == "out"


def test_without_a_lineage_the_cards_of_the_trainer_and_of_peft_stay(upscaled, caplog):
    for name in ("adapter", "out"):
        Path(name).mkdir()
    (Path("adapter") / LINEAGE_FILE).write_text("{}{")
    keys = {"adapter": "lora", "lora_model_dir": "adapter"}
    trainer = described(recipe(upscaled, "out", **keys), Trainer(upscaled, "out", adapter=True))
    assert f"adapter/{LINEAGE_FILE}" in caplog.text
    trainer.model.create_or_update_model_card("out")
    assert front("out")["base_model"] == "/cache/upscaled-x"
    trainer.create_model_card()
    assert front("out")["tags"] == ["generated_from_trainer"]


def test_a_card_that_cannot_be_made_leaves_ours(upscaled):
    trainer = Trainer(upscaled, "out")

    def fails():
        raise AttributeError

    trainer.create_model_card = fails
    described(recipe(upscaled, "out"), trainer)
    with pytest.raises(AttributeError):
        trainer.create_model_card()
    assert trainer.args.output_dir == "out"
    assert "Stages" in (Path("out") / "README.md").read_text()


def test_checkpoints_have_it_before_they_are_pushed(upscaled):
    trainer = described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    checkpoint = Path("out/checkpoint-3")
    checkpoint.mkdir()
    trainer.event("on_push_begin")
    assert (checkpoint / "README.md").read_text() == Path("out/README.md").read_text()
    assert lineage.read(checkpoint) == lineage.read(Path("out"))


def test_pefts_card_is_ours_on_every_rank(upscaled):
    main = described(recipe(upscaled, "out", adapter="lora"), Trainer(upscaled, "out", adapter=True))
    main.model.create_or_update_model_card("out")
    other = described(recipe(upscaled, "out", adapter="lora"), Trainer(upscaled, "out", adapter=True, main=False))
    other.model.create_or_update_model_card("out")
    assert lineage.read(Path("out")).stages[-1].adapter == "lora"
    assert (front("out")["library_name"], front("out").get("base_model")) == ("peft", None)
    assert "cache" not in (Path("out") / "README.md").read_text()


def test_other_ranks_write_nothing(upscaled):
    trainer = described(recipe(upscaled, "out"), Trainer(upscaled, "out", main=False))
    trainer.create_model_card()
    assert not Path("out").exists()
    assert trainer.callbacks == []


def test_an_evaluation_writes_nothing(upscaled):
    plugin, trainer = SolarPlugin(), Trainer(upscaled, "out")
    plugin.register(recipe(upscaled, "out"))
    plugin.post_trainer_create(recipe(upscaled, "out"), trainer)
    trainer.event("on_save")
    assert not Path("out").exists()


def test_a_model_that_does_not_come_from_an_upscaled_one_is_left_alone(base, tmp_path):
    trainer = Trainer(base, str(tmp_path / "out"))
    create = trainer.create_model_card
    described(recipe(str(base), str(tmp_path / "out")), trainer)
    assert trainer.create_model_card == create
    assert trainer.callbacks == []
    assert not (tmp_path / "out").exists()


def test_the_card_of_a_user_is_kept(upscaled):
    Path("out").mkdir()
    (Path("out") / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
    trainer = described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    trainer.create_model_card()
    text = (Path("out") / "README.md").read_text()
    assert front("out")["license"] == "apache-2.0"
    assert split_card(text)[1].startswith("# Mine\n")
    assert "## Training procedure" in text


def test_a_card_that_is_a_link_is_replaced_and_its_target_stays(upscaled):
    Path("out").mkdir()
    Path("mine.md").write_text("# Mine\n")
    (Path("out") / "README.md").symlink_to(Path("mine.md").absolute())
    described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    assert Path("mine.md").read_text() == "# Mine\n"
    assert "Stages" in (Path("out") / "README.md").read_text()


def test_a_missing_license_is_logged(upscaled, caplog):
    (Path(upscaled) / "README.md").unlink()
    with caplog.at_level(logging.WARNING):
        described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    assert "no license is known of base" in caplog.text
    assert "Warning" in (Path("out") / "README.md").read_text()


def test_a_card_that_cannot_be_written_does_not_end_the_training(upscaled, caplog):
    Path("out").write_text("a file")
    described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    assert "cannot be written" in caplog.text


def test_a_lineage_that_cannot_be_read_leaves_the_record(upscaled, caplog):
    (Path(upscaled) / LINEAGE_FILE).write_text("{}{")
    described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    assert LINEAGE_FILE in caplog.text
    found = lineage.read(Path("out"))
    assert found.earlier_unknown
    assert found.layer_plan == PLAN
    assert [one.id for one in found.licenses] == ["mit"]


def test_a_resumed_run_adds_no_stage(upscaled):
    for _ in range(2):
        described(recipe(upscaled, "out"), Trainer(upscaled, "out"))
    assert [stage.kind for stage in lineage.read(Path("out")).stages] == ["upscale", "sft"]
    (Path("out") / "config.json").write_bytes((Path(upscaled) / "config.json").read_bytes())
    for _ in range(2):  # The output is the base itself.
        described(recipe("out", "out"), Trainer("out", "out"))
    assert [stage.kind for stage in lineage.read(Path("out")).stages] == ["upscale", "sft", "sft"]


def test_a_pushed_model_is_the_parent_of_the_next(upscaled):
    described(recipe(upscaled, "sft"), Trainer(upscaled, "sft", hub_model_id="me/sft"))
    (Path("sft") / "config.json").write_bytes((Path(upscaled) / "config.json").read_bytes())
    described(recipe("sft", "dpo", rl="dpo"), Trainer("sft", "dpo"))
    assert front("dpo")["base_model"] == ["me/sft"]
    assert [stage.kind for stage in lineage.read(Path("dpo")).stages] == ["upscale", "sft", "dpo"]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"datasets": [{"type": "completion"}]}, "pretrain"),
        ({"pretraining_dataset": "org/text"}, "pretrain"),
        ({"datasets": [{"type": "completion"}, {"type": "alpaca"}]}, "sft"),
        ({"datasets": [{"type": "solar_plugins.alpaca"}]}, "sft"),
        ({"rl": "orpo"}, "orpo"),
        ({"reward_model": True}, "reward"),
    ],
)
def test_the_kind_of_a_stage(keys, kind):
    assert kind_of(keys) == kind
    assert Stage(kind=kind, result=Source(name="x"))


def test_the_datasets_of_a_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "rows").mkdir(parents=True)
    asked = {"datasets": [{"path": "data/rows"}, {"path": "data/rows"}], "pretraining_dataset": "org/text"}
    assert datasets_of(asked) == (Source(name="data/rows"), Source(name="org/text", on_hub=True))
    assert datasets_of({"datasets": None, "pretraining_dataset": [{"path": "org/a", "name": "x"}]})[0].on_hub


@pytest.fixture
def merged(upscaled):
    """``out`` with an adapter and ``out/merged`` with the small files of the base, as Axolotl writes them."""
    described(recipe(upscaled, "out", adapter="lora"), Trainer(upscaled, "out", adapter=True))
    folder = Path("out/merged")
    folder.mkdir()
    for name in ("config.json", "README.md", MARKER):
        (folder / name).write_bytes((Path(upscaled) / name).read_bytes())
    return folder


def merge(upscaled, merged):
    plugin, cfg = SolarPlugin(), recipe(upscaled, "out", adapter="lora", merge_lora=True)
    plugin.register(cfg)
    plugin.post_lora_merge(cfg, "out", str(merged))
    return lineage.read(merged)


def test_a_merged_adapter_has_the_lineage_of_both(upscaled, merged):
    found = merge(upscaled, merged)
    assert [stage.kind for stage in found.stages] == ["upscale", "sft", "merge_lora"]
    assert [source.name for source in found.stages[-1].sources] == ["outputs/solar_dus", "out"]
    assert not (merged / MARKER).exists()
    text = (merged / "README.md").read_text()
    assert "not been trained" not in text
    assert (front(merged)["license"], front(merged)["library_name"]) == ("mit", "transformers")


def test_an_adapter_without_lineage_is_described_by_its_recipe(upscaled, merged):
    (Path("out") / LINEAGE_FILE).unlink()
    found = merge(upscaled, merged)
    assert [(stage.kind, stage.adapter) for stage in found.stages] == [
        ("upscale", None),
        ("sft", "lora"),
        ("merge_lora", "lora"),
    ]
    assert not found.earlier_unknown


def test_a_users_card_in_the_merged_folder_is_kept(upscaled, merged):
    (merged / "README.md").write_text("# Mine\n")
    merge(upscaled, merged)
    assert split_card((merged / "README.md").read_text())[1].startswith("# Mine\n")


def test_a_base_that_is_gone_leaves_its_record_and_its_license(upscaled, merged):
    (Path("out") / LINEAGE_FILE).unlink()
    found = merge("gone", merged)
    assert found.earlier_unknown
    assert [one.id for one in found.licenses] == ["mit"]
    assert not (merged / MARKER).exists()


def test_a_record_that_cannot_be_read_is_an_error(upscaled, merged):
    (merged / "config.json").write_text(json.dumps({"solar_plugins": {"plan": 1}}))
    (Path("out") / LINEAGE_FILE).unlink()
    with pytest.raises((CheckpointError, SystemExit), match="solar_plugins"):
        merge("gone", merged)
