"""Adapters on an upscaled base: LoRA with a sharded base, and QLoRA."""

import pytest
from launchers import SHARDING, environment, evidence, train

from solar_plugins import lineage
from solar_plugins.storage.cards import split_card

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

ROWS = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"The sum is {n + 1}."} for n in range(10, 26)]
LORA = {
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "solar_plugins.alpaca"}],
    "max_steps": 2,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
    # Triton's kernels need a GPU.
    **{f"lora_{kind}_kernel": False for kind in ("mlp", "qkv", "o", "embedding")},
}


@pytest.mark.parametrize(
    ("sharding", "ranks"), [("fsdp2", 2), pytest.param("zero3", 2, marks=pytest.mark.nightly), (None, 1)]
)
def test_lora(sharding, ranks, make_training_folder, run_warm):
    qlora = {} if sharding else {"adapter": "qlora", "load_in_4bit": True}
    folder = make_training_folder(ROWS, LORA | qlora | SHARDING.get(sharding, {}))
    status, said = train(folder, sharding, ranks)
    assert status == 0, said[-5000:]
    for rank in evidence(folder, ranks):
        assert len(rank["losses"]) == 2
        assert len(rank["layer_sums"]) == 12
    assert_adapter_covers_every_layer(folder / "out")
    assert_card_is_ours(folder / "out", "lora" if sharding else "qlora")
    if sharding == "zero3":
        assert_merged_is_the_upscaled_base_plus_the_adapter(folder, run_warm)


def assert_card_is_ours(out, adapter):
    """Of all ranks that save, none leaves the card of peft, which names the folder of the cache."""
    last = lineage.read(out).stages[-1]
    assert (last.kind, last.adapter) == ("sft", adapter)
    front, text = split_card((out / "README.md").read_text())
    assert front["library_name"] == "peft"
    assert "upscaled-" not in f"{front}{text}"


def assert_adapter_covers_every_layer(out):
    from safetensors.torch import load_file

    adapter = load_file(out / "adapter_model.safetensors")
    for layer in range(12):
        moved = [
            tensor.abs().sum().item()
            for name, tensor in adapter.items()
            if f".layers.{layer}." in name and "lora_B" in name
        ]
        assert len(moved) == 7, "q, k, v, o, gate, up, down"
        assert min(moved) > 0, "B starts at zero"


def assert_merged_is_the_upscaled_base_plus_the_adapter(folder, run_warm):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    command = ["python", "-m", "axolotl.cli.merge_lora", "recipe.yml", "--deepspeed=None"]
    merging = run_warm(*command, cwd=folder, env=environment("zero3", folder))
    assert merging.returncode == 0, merging.stderr[-5000:]
    (upscaled,) = (folder / "cache").iterdir()
    base = AutoModelForCausalLM.from_pretrained(upscaled)
    expected = PeftModel.from_pretrained(base, folder / "out").merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(folder / "out" / "merged").state_dict()
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=1e-5, atol=1e-6)
