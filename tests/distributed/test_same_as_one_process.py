"""Several ranks train the same upscaled model, on different rows, to the same losses as one process.

Instruction tuning and DPO, each under DDP, FSDP2, ZeRO-2 and ZeRO-3, from the upscaling to the saved model. The
expected values come from one process that reads the same rows in the same order with gradient accumulation, and from
the base's own tensors.
"""

import functools
import json
import math
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from commands import cold
from launchers import SHARDING, evidence, torchrun, train

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS = 3
TOLERANCE = 1e-5
"""Of losses around 10 (instruction tuning) and 0.7 (DPO): fp32 sums in another order. Most are bit-identical."""

# Answers of equal length: Axolotl weights short and long answers differently on several ranks and on one process with
# gradient accumulation (by 0.02 % of the loss on answers of 12 to 14 tokens).
NUMBERS = range(10, 34)
ALPACA = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"The sum is {n + 1}."} for n in NUMBERS]
PAIRS = [
    {"system": "", "question": f"Add {n} and 1.", "chosen": f"It is {n + 1}.", "rejected": f"It is {n}."}
    for n in NUMBERS
]
KINDS = {
    "sft": (
        ALPACA,
        {
            "save_only_model": True,
            "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "solar_plugins.alpaca"}],
        },
    ),
    "dpo": (
        PAIRS,
        {
            "rl": "dpo",
            "rl_beta": 0.1,
            "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "solar_plugins.orca_dpo_pairs"}],
        },
    ),
}
CASES = [
    *(("sft", sharding, 2) for sharding in ("fsdp2", "zero3")),
    ("dpo", "ddp", 2),
    *(pytest.param("sft", sharding, 2, marks=pytest.mark.nightly) for sharding in ("ddp", "zero2")),
    *(pytest.param("dpo", sharding, 2, marks=pytest.mark.nightly) for sharding in ("fsdp2", "zero2", "zero3")),
    *(pytest.param("dpo", sharding, 4, marks=pytest.mark.nightly) for sharding in SHARDING),
]


@pytest.fixture(scope="module")
def alone(make_training_folder):
    """For a kind of training and a number of ranks: folder, losses and rows per optimizer step of one process."""

    @functools.cache
    def run_alone(kind, num_ranks):
        rows, keys = KINDS[kind]
        folder = make_training_folder(rows, keys | {"gradient_accumulation_steps": num_ranks, "max_steps": STEPS})
        status, said = train(folder, None, 1)
        assert status == 0, said[-5000:]
        (seen,) = evidence(folder, 1)
        assert len(seen["losses"]) == STEPS
        batches = [seen["rows"][step * num_ranks : (step + 1) * num_ranks] for step in range(STEPS)]
        return folder, seen["losses"], [sorted(chain(*batch)) for batch in batches]

    return run_alone


@pytest.mark.parametrize(("kind", "sharding", "num_ranks"), CASES)
def test_ranks_train_as_one_process_does(kind, sharding, num_ranks, alone, make_training_folder):
    rows, keys = KINDS[kind]
    folder = make_training_folder(rows, keys | SHARDING[sharding] | {"max_steps": STEPS})
    if (kind, sharding) == ("sft", "ddp"):
        status, said = torchrun(folder, sharding, num_ranks, start=cold)
    else:
        status, said = train(folder, sharding, num_ranks)
    assert status == 0, said[-5000:]
    seen = evidence(folder, num_ranks)
    one_folder, losses, batches = alone(kind, num_ranks)

    assert one_checkpoint(folder)
    assert said.count("upscaling base: 8 -> 12 layers") == 1, "one rank writes, the others wait"
    assert_layers_are_the_bases(folder, seen)
    assert_rows_are_distributed(seen, batches)
    for rank in seen:
        assert rank["losses"] == pytest.approx(losses, abs=TOLERANCE)
    if kind == "dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert_result_reloads(folder, one_folder)
    kept = {path.name for path in (folder / "out" / "checkpoint-3").iterdir()}
    with_optimizer = any(name.startswith(("optimizer", "global_step")) for name in kept)
    assert with_optimizer == ("save_only_model" not in keys), kept


def one_checkpoint(folder):
    (directory,) = (folder / "cache").iterdir()  # no lock and no partial directory is left
    return json.loads((directory / "config.json").read_text())["num_hidden_layers"] == 12


def assert_layers_are_the_bases(folder, seen):
    """The layers of each rank before the first step: layers 0..5, then 2..7 of the base (m = 2)."""
    base = base_layer_sums(folder / "base")
    for rank in seen:
        assert len(rank["layer_sums"]) == 12
        for new, old in enumerate([0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]):
            assert rank["layer_sums"][str(new)] == pytest.approx(base[old], abs=1e-9), (new, old)


def base_layer_sums(directory: Path):
    from safetensors.torch import load_file

    sums = Counter()
    for name, tensor in load_file(directory / "model.safetensors").items():
        if ".layers." in name:
            sums[int(name.split(".layers.")[1].split(".")[0])] += tensor.double().sum().item()
    assert len({round(total, 6) for total in sums.values()}) == 8, "all layers of the base differ"
    return sums


def assert_rows_are_distributed(seen, batches):
    for step, expected in enumerate(batches):
        by_rank = [rank["rows"][step] for rank in seen]
        assert sorted(chain(*by_rank)) == expected, "together the rows of the single process"
        assert len(set(map(tuple, by_rank))) == len(seen), "each rank its own"


def assert_result_reloads(folder, one_folder):
    import torch
    from transformers import AutoModelForCausalLM

    trained, info = AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert trained.config.num_hidden_layers == 12
    alone = AutoModelForCausalLM.from_pretrained(one_folder / "out").state_dict()
    start = AutoModelForCausalLM.from_pretrained(next((folder / "cache").iterdir())).state_dict()
    moved, apart = 0.0, 0.0
    for name, tensor in trained.state_dict().items():
        moved += (tensor.double() - start[name].double()).square().sum().item()
        apart += (tensor.double() - alone[name].double()).square().sum().item()
    assert torch.isfinite(torch.tensor(moved))
    assert moved > 0
    assert apart < 1e-3 * moved, "the same update, within 3 % of its norm"
