"""A run that resumes from a checkpoint gives the same result as one that was never interrupted."""

import shutil

import pytest
from launchers import SHARDING, environment, evidence, train

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TEXTS = [{"text": f"The number {n} is followed by the number {n + 1}. " * 20} for n in range(12)]
KEYS = {
    "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "completion"}],
    "max_steps": 4,
    "save_steps": 2,
    "auto_resume_from_checkpoints": True,
}
SHARDED = SHARDING["fsdp2"]["fsdp_config"] | {"state_dict_type": "SHARDED_STATE_DICT"}
STATES = {
    None: (1, {}),
    "fsdp2": (2, SHARDING["fsdp2"] | {"fsdp_config": SHARDED}),
    "zero3": (2, SHARDING["zero3"]),
}
"""FSDP2 with a sharded state, of which each rank writes its part; that of ZeRO-3 is always sharded."""


@pytest.mark.parametrize(
    "sharding", [pytest.param(name, marks=pytest.mark.nightly) if name == "zero3" else name for name in STATES]
)
def test_a_resumed_run_equals_an_uninterrupted_one(sharding, make_training_folder, run_warm):
    ranks, keys = STATES[sharding]
    folder = make_training_folder(TEXTS, KEYS | keys)
    status, said = train(folder, sharding, ranks)
    assert status == 0, said[-5000:]
    uninterrupted = evidence(folder, ranks)
    expected = weights(folder / "out")
    (checkpoint,) = (folder / "cache").iterdir()
    written = [path.stat().st_mtime_ns for path in sorted(checkpoint.iterdir())]

    keep_only_the_first_checkpoint(folder / "out")
    status, said = train(folder, sharding, ranks)
    assert status == 0, said[-5000:]
    assert "using the cached upscaled checkpoint" in said
    assert "upscaling base" not in said
    assert [path.stat().st_mtime_ns for path in sorted(checkpoint.iterdir())] == written
    for rank, expected_rank in zip(evidence(folder, ranks), uninterrupted, strict=True):
        assert rank["rows"] == expected_rank["rows"][2:], "the data resume where they stopped"
        assert rank["losses"] == pytest.approx(expected_rank["losses"], abs=1e-5), "optimizer and schedule too"
    assert_same(weights(folder / "out"), expected)
    if sharding == "fsdp2":
        assert_merging_gives_the_same(folder, expected, run_warm)


def keep_only_the_first_checkpoint(out):
    for path in out.iterdir():
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def weights(directory):
    """The full model, loaded as users load it."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == 12
    return model.state_dict()


def assert_same(found, expected):
    import torch

    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0.01, atol=1e-4)  # bfloat16, as Axolotl merges


def assert_merging_gives_the_same(folder, expected, run_warm):
    """``axolotl merge-sharded-fsdp-weights``, which loads the recipe and so calls the plugin again."""
    assert (folder / "out" / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir(), "the state was sharded"
    (folder / "out" / "model.safetensors").unlink()
    command = ["python", "-m", "axolotl.cli.merge_sharded_fsdp_weights", "recipe.yml"]
    merging = run_warm(*command, cwd=folder, env=environment("fsdp2", folder))
    assert merging.returncode == 0, merging.stderr[-5000:]
    assert "upscaling base" not in merging.stdout + merging.stderr
    merged = folder / "out" / "merged"
    shutil.copy(folder / "out" / "config.json", merged)
    assert_same(weights(merged), expected)
