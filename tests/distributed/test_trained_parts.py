"""`solar.train`: exactly its parameters have gradients and optimizer states, with their rates, on several ranks."""

import shutil

import pytest
from launchers import SHARDING, environment, evidence, train
from test_adapters import LORA

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

RATE, SCALE = 1e-3, 0.1
ROWS = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"The sum is {n + 1}."} for n in range(10, 26)]
SEAM = {
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "solar_plugins.alpaca"}],
    "solar": {
        "init": {"strategy": "dus", "drop_layers": 2},
        "train": {"layers": "seam", "around": 2, "norms": True, "lr_scale": {"old": SCALE}},
        "cache_dir": "cache",
    },
    "max_steps": 1,
    "learning_rate": RATE,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "gradient_checkpointing": True,
}
SEAM_LAYERS = tuple(f"model.layers.{number}." for number in (4, 5, 6, 7))
NEW_LAYERS = tuple(f"model.layers.{number}." for number in (6, 7, 8, 9))
"""The base's layers 2 to 5 are repeated as 6 to 9; the seam is below layer 6."""


def tensors_of(directory):
    from safetensors.torch import load_file

    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("sharding", "ranks"), [(None, 1), pytest.param("ddp", 2, marks=pytest.mark.nightly), ("fsdp2", 2), ("zero3", 2)]
)
def test_exactly_the_chosen_parameters_are_trained_with_their_rates(sharding, ranks, make_training_folder):
    folder = make_training_folder(ROWS, SEAM | SHARDING.get(sharding, {}))
    status, said = train(folder, sharding, ranks, LEARNING="1")
    assert status == 0, said[-5000:]
    (upscaled,) = (folder / "cache").iterdir()
    before, after = tensors_of(upscaled), tensors_of(folder / "out")
    chosen = {name for name in before if name.startswith(SEAM_LAYERS) or "norm" in name}
    for rank in evidence(folder, ranks):
        assert rank["learning"] == dict.fromkeys(chosen, True)
    for name, tensor in before.items():
        moved = (after[name] - tensor).abs().max().item()
        # Adam's first step is the learning rate times the gradient's sign.
        expected = 0 if name not in chosen else RATE if name.startswith(NEW_LAYERS) else RATE * SCALE
        assert moved == pytest.approx(expected, rel=0.01), name
    assert "4 of 12 layers are trained" in said
    assert f"of {sum(tensor.numel() for tensor in before.values()):,} parameters" in said, "ZeRO-3 too"


def test_two_ranks_agree_on_a_plan_of_two_models_and_train_the_donors_layers(
    make_training_folder, small_base, tiny_model
):
    slices = [[0, 6], {"model": "donor", "layers": [3, 5]}, [6, 8]]
    solar = {"init": {"strategy": "slices", "slices": slices}, "train": {"layers": "new"}, "cache_dir": "cache"}
    folder = make_training_folder(ROWS, SEAM | {"solar": solar})
    tiny_model(folder / "donor", "mistral", dtype="float32", vocab_size=32000, num_hidden_layers=6, seed=1)
    for path in small_base.glob("tokenizer*"):
        shutil.copy(path, folder / "donor")
    status, said = train(folder, "ddp", 2, LEARNING="1")
    assert status == 0, said[-5000:]
    (upscaled,) = (folder / "cache").iterdir()
    before, after = tensors_of(upscaled), tensors_of(folder / "out")
    chosen = {name for name in before if name.startswith(("model.layers.6.", "model.layers.7."))}
    assert {name for name, tensor in before.items() if not tensor.equal(after[name])} == chosen
    for rank in evidence(folder, 2):
        assert rank["learning"] == dict.fromkeys(chosen, True)
    donor = tensors_of(folder / "donor")
    assert before["model.layers.7.mlp.up_proj.weight"].equal(donor["model.layers.4.mlp.up_proj.weight"])


def test_an_adapter_covers_only_the_chosen_layers(make_training_folder):
    solar = {**SEAM["solar"], "train": {"layers": "new", "embeddings": True, "lr_scale": {"old": SCALE}}}
    folder = make_training_folder(ROWS, LORA | SEAM | {"solar": solar})
    status, said = train(folder, None, 1, LEARNING="1")
    assert status == 0, said[-5000:]
    (seen,) = evidence(folder, 1)
    adapted = {name for name in seen["learning"] if ".lora_" in name}
    new = {name for name in adapted if any(f".layers.{number}." in name for number in (6, 7, 8, 9))}
    assert len(adapted) == 4 * 7 * 2, "q, k, v, o, gate, up, down, each with A and B"
    assert adapted == new
    assert {name for name in seen["learning"] if name not in adapted} == {
        "base_model.model.model.embed_tokens.modules_to_save.default.weight"
    }
    before = tensors_of(next((folder / "cache").iterdir()))["model.embed_tokens.weight"]
    after = tensors_of(folder / "out")["base_model.model.model.embed_tokens.weight"]
    assert (after - before).abs().max().item() == pytest.approx(RATE * SCALE, rel=0.01)


def test_tied_embeddings_stay_tied_with_an_adapter(make_training_folder, run_warm):
    """PEFT by default trains a copy of the input embeddings only; merged, the copy would also be the head."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    solar = {**SEAM["solar"], "train": {"layers": "new", "embeddings": True}}
    folder = make_training_folder(ROWS, LORA | SEAM | {"solar": solar, "learning_rate": 0.05})
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    base.lm_head.weight = base.model.embed_tokens.weight
    base.config.tie_word_embeddings = True
    base.save_pretrained(folder / "base")
    status, said = train(folder, None, 1, LEARNING="1")
    assert status == 0, said[-5000:]
    command = ["python", "-m", "axolotl.cli.merge_lora", "recipe.yml"]
    merging = run_warm(*command, cwd=folder, env=environment(None, folder))
    assert merging.returncode == 0, merging.stderr[-5000:]
    ids = torch.arange(300, 340)[None]
    upscaled = AutoModelForCausalLM.from_pretrained(next((folder / "cache").iterdir()))
    untrained = upscaled(ids).logits
    trained = PeftModel.from_pretrained(upscaled, folder / "out")(ids).logits
    merged = AutoModelForCausalLM.from_pretrained(folder / "out/merged", dtype=torch.float32)
    assert (trained - untrained).abs().max() > 0.1
    torch.testing.assert_close(merged(ids).logits, trained, atol=1e-3, rtol=1e-3)
