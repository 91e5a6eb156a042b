"""The stages of `make pipeline` after upscaling, one after the other with the shipped recipes, on a tiny model."""

import json
import math
import shutil

import pytest

from solar_plugins import lineage
from solar_plugins.lineage.merges import describe
from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import read_yaml
from solar_plugins.storage.cards import split_card
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

SMALL = recipe_directory() / "smollm2"

INSTRUCTIONS = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"The sum is {n + 1}."} for n in range(8)]
ORCA_PAIRS = [
    {"system": "Be brief.", "question": f"Add {n} and 1.", "chosen": f"It is {n + 1}.", "rejected": f"It is {n}."}
    for n in range(3)
]
OTHER_PAIRS = [
    {
        "conversations": [{"from": "human", "value": f"Double {n}."}],
        "chosen": {"from": "gpt", "value": f"It is {2 * n}."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    for n in range(1, 4)
]
PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
ROWS = {
    "instructions_train": INSTRUCTIONS,
    "instructions_held_out": INSTRUCTIONS[:2],
    "pairs_orca": ORCA_PAIRS,
    "pairs_other": OTHER_PAIRS,
    "pairs_held_out": OTHER_PAIRS[:2],
}


@pytest.fixture
def folder(tmp_path, tiny_model, sentencepiece_tokenizer):
    """A folder to run the recipes in: a tiny upscaled model with the ChatML template replaces that of the demo."""
    runs, base = tmp_path / "runs" / "smollm2", tmp_path / "base"
    tiny_model(base, kind="mistral", dtype="float32", vocab_size=32000, num_hidden_layers=4)
    for path in sentencepiece_tokenizer.iterdir():
        shutil.copy(path, base)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    write_checkpoint(find_base(str(base)), PLAN, runs / "dus")
    (runs / "alignment").mkdir()
    for name, rows in ROWS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (runs / "alignment" / f"{name}.jsonl").write_text(text)
    (tmp_path / "recipes").symlink_to(recipe_directory())
    return tmp_path


@pytest.mark.slow
def test_sft_then_dpo_then_average(folder, run_warm, monkeypatch):
    """The SFT model is averaged too, which saves a second run of DPO."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    runs = folder / "runs" / "smollm2"
    # High rates, so that four and six steps move the weights.
    train(run_warm, folder, "solar_sft.yml", "--max_steps=4", "--learning_rate=1e-3")
    train(run_warm, folder, "solar_dpo.yml", "--learning_rate=1e-4")
    history = logged(runs / "dpo")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == len(ORCA_PAIRS + OTHER_PAIRS)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4), "the SFT model is the start and the reference"
    assert losses[-1] != losses[0]
    evaluated_at = [entry["step"] for entry in history if "eval_loss" in entry]
    assert evaluated_at == [3, 6], "evaluated on held-out pairs at half of the epoch and at its end"

    shutil.copytree(runs / "sft", runs / "sdpo_2")
    merged = run_warm("mergekit-yaml", "recipes/smollm2/mergekit/solar_average.yml", "runs/smollm2/average", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    sft, dpo, average = (tensors(runs / name, load_file) for name in ("sft", "dpo", "average"))
    assert average.keys() == dpo.keys()
    for name, tensor in average.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, (sft[name] + dpo[name]) / 2, rtol=1e-6, atol=1e-8)
    assert any(not torch.equal(sft[name], dpo[name]) for name in sft)

    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    for stage in ("sft", "dpo", "average"):
        tokenizer = AutoTokenizer.from_pretrained(runs / stage)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == "### System:\ns\n\n### User:\nu\n\n### Assistant:\n", stage

    monkeypatch.chdir(folder)
    describe(runs / "average")
    again = ("--base_model=runs/smollm2/average", "--output_dir=runs/smollm2/last", "--max_steps=1")
    train(run_warm, folder, "solar_dpo.yml", *again)
    assert_card_names_every_stage(runs / "last", str(folder))


def assert_card_names_every_stage(model, machine):
    found = lineage.read(model)
    kinds = [(stage.kind, stage.result.short) for stage in found.stages]
    assert kinds == [("upscale", "dus"), ("sft", "sft"), ("dpo", "dpo"), ("merge", "average"), ("dpo", "last")]
    assert not found.earlier_unknown
    assert found.layer_plan == PLAN
    front, text = split_card((model / "README.md").read_text())
    assert front["license"] == "mit"
    assert {"axolotl", "depth-up-scaling", "solar_plugins", "trl", "dpo"} <= set(front["tags"])
    for number, (_, name) in enumerate(kinds, 1):
        (line,) = [line for line in text.splitlines() if line.startswith(f"{number}. ")]
        assert f"`{name}`" in line
    assert text.count("```yaml") == 4, "the recipes of the trained models and of the merge"
    for wrong in (machine, "from scratch", "More information needed"):
        assert wrong not in text


def train(run_warm, folder, recipe, *overrides):
    path = f"recipes/smollm2/{recipe}"
    trained = run_warm("python", "-m", "axolotl.cli.train", path, "--sequence_len=128", *overrides, cwd=folder)
    assert trained.returncode == 0, trained.stdout + trained.stderr


def logged(directory):
    (state,) = directory.glob("checkpoint-*/trainer_state.json")
    return json.loads(state.read_text())["log_history"]


def tensors(directory, load_file):
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_dpo_and_stepwise_dpo_use_the_same_pairs():
    def sets(recipe):
        return read_yaml(SMALL / f"solar_{recipe}.yml")["datasets"]

    assert sets("dpo") == sets("sdpo_1") + sets("sdpo_2")
