"""Load an upscaled checkpoint in bfloat16, as a user would, and compare it with its base according to the plan.

python gpu_load_check.py UPSCALED CHECKSUMS.json DROP_LAYERS RESULT.json
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_random_base import OUTER, checksum, group_of
from transformers import AutoModelForCausalLM

FORWARD_TOKENS = 512


def check(directory: Path, base_sums: dict[str, int], drop_layers: int) -> dict[str, Any]:
    """Results of loading, of the layers' checksums, and of a forward pass."""
    on_gpu = torch.cuda.is_available()
    begin = time.perf_counter()
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, device_map={"": 0} if on_gpu else None, output_loading_info=True
    )
    seconds = time.perf_counter() - begin
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        found[group_of(name)] = found.get(group_of(name), 0) + checksum(parameter)
    ids = torch.randint(3, model.config.vocab_size, (1, FORWARD_TOKENS), device=model.device)
    with torch.inference_mode():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "load_seconds": seconds,
        "missing_or_unexpected": sorted(str(key) for keys in info.values() for key in keys),
        "num_layers": model.config.num_hidden_layers,
        "parameters": model.num_parameters(),
        "dtypes": sorted({str(parameter.dtype) for parameter in model.parameters()}),
        "wrong_layers": wrong_groups(found, expected_sums(base_sums, drop_layers)),
        "distinct_base_sums": len(set(base_sums.values())) == len(base_sums),
        "logits_finite": bool(torch.isfinite(logits).all()),
        "logits_deviation": logits.float().std().item(),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def expected_sums(base_sums: dict[str, int], drop_layers: int) -> dict[str, int]:
    """The checksums after depth up-scaling as in the paper: the base without its last m layers, then the base without
    its first m (arXiv:2312.15166, sec. 2.1)."""
    depth = len(base_sums) - 1
    sources = [*range(depth - drop_layers), *range(drop_layers, depth)]
    layers = {str(new): base_sums[str(source)] for new, source in enumerate(sources)}
    return layers | {OUTER: base_sums[OUTER]}


def wrong_groups(found: dict[str, int], expected: dict[str, int]) -> list[str]:
    """The layers whose checksums differ, and those that only one side has."""
    return sorted(group for group in found.keys() | expected.keys() if found.get(group) != expected.get(group))


if __name__ == "__main__":
    upscaled, checksums, m, result = sys.argv[1:]
    metrics = check(Path(upscaled), json.loads(Path(checksums).read_text()), int(m))
    Path(result).write_text(json.dumps(metrics))
