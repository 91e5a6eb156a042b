"""How individual model families derive a layer's properties from its position. Pure.

Each rule follows the configuration and modeling files of transformers 5.20, with which the tests compare it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import (
    Config,
    LayerField,
    derived,
    indices,
    listed,
    recoded,
    whole_number,
)


def every(
    key: str, default: int, *, at: str = "full_attention", else_: str = "sliding_attention", name: str = "layer_types"
) -> LayerField:
    """The default of ``name``: every ``key``-th layer is ``at``, all others ``else_``."""

    def layers(config: Config, num_layers: int) -> Sequence[str]:
        period = whole_number(config, key, default)
        return [at if period and (index + 1) % period == 0 else else_ for index in range(num_layers)]

    return listed(name, layers)._replace(reads=(key,))


def leading_dense(default: int) -> LayerField:
    """The default of ``mlp_layer_types``: the first ``first_k_dense_replace`` layers are dense."""

    def layers(config: Config, num_layers: int) -> Sequence[str]:
        dense = whole_number(config, "first_k_dense_replace", default)
        return ["dense" if index < dense else "sparse" for index in range(num_layers)]

    return listed("mlp_layer_types", layers)


def mimo_attention(config: Config, num_layers: int) -> Sequence[str]:
    """MiMo-V2: the first layer and every sixth have full attention (configuration_mimo_v2_flash.py)."""
    return [
        "full_attention" if index == 0 or (index + 1) % 6 == 0 else "sliding_attention" for index in range(num_layers)
    ]


def kimi_attention(config: Config, num_layers: int) -> Sequence[str | None]:
    """Kimi-Linear: from the lists in ``linear_attn_config``; default: every fourth layer has full attention."""
    numbers = _kimi_numbers(config)
    if numbers is None:
        return ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(num_layers)]
    return [next((kind for kind, layers in numbers.items() if at + 1 in layers), None) for at in range(num_layers)]


_KIMI_LISTS = {"full_attention": "full_attn_layers", "linear_attention": "kda_layers"}


def _kimi_numbers(config: Config) -> dict[str, Sequence[int]] | None:
    """The layers of each kind, 1-based; None unless the config has both lists."""
    stated = config.get("linear_attn_config") or {}
    if not all(isinstance(stated.get(key), list) for key in _KIMI_LISTS.values()):
        return None
    return {kind: stated[key] for kind, key in _KIMI_LISTS.items()}


def kimi_lists(decides: LayerField) -> LayerField:
    """The lists in ``linear_attn_config``; vLLM reads them, transformers only if ``layer_types`` is absent."""

    def read(config: Config, num_layers: int) -> Sequence[str | None]:
        if _kimi_numbers(config) is None:
            return [None] * num_layers
        kinds = kimi_attention(config, num_layers)
        if list(kinds) != list(decides.read(config, num_layers)):
            raise CheckpointError(
                "config.json: linear_attn_config and layer_types describe different layers; make these keys agree"
            )
        return kinds

    def write(config: Config, values: Sequence[str | None]) -> dict[str, Any]:
        if _kimi_numbers(config) is None:
            return {}
        lists = {
            key: [index + 1 for index, value in enumerate(values) if value == kind] for kind, key in _KIMI_LISTS.items()
        }
        return {"linear_attn_config": {**config["linear_attn_config"], **lists}}

    return LayerField("linear_attn_config", read, write)


def upper_window(config: Config, num_layers: int) -> Sequence[str]:
    """Qwen2: the sliding window, if used, starts at layer ``max_window_layers`` (configuration_qwen2.py)."""
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = whole_number(config, "max_window_layers", 28)
    return ["full_attention" if window is None or index < first else "sliding_attention" for index in range(num_layers)]


def lower_window(config: Config, num_layers: int) -> Sequence[str]:
    """Qwen2-MoE: every other layer below ``max_window_layers`` has the sliding window, if used."""
    last = whole_number(config, "max_window_layers", 28) if config.get("use_sliding_window") else 0
    return ["sliding_attention" if index % 2 == 0 and index < last else "full_attention" for index in range(num_layers)]


def dots_window(config: Config, num_layers: int) -> Sequence[str]:
    """dots.llm1: as `upper_window`, but without ``use_sliding_window``."""
    first = whole_number(config, "max_window_layers", 62)
    window = config.get("sliding_window")
    return ["full_attention" if window is None or index < first else "sliding_attention" for index in range(num_layers)]


def window_everywhere(config: Config, num_layers: int) -> Sequence[str]:
    """Ministral: all layers have the sliding window, if there is one."""
    return ["full_attention" if config.get("sliding_window") is None else "sliding_attention"] * num_layers


def interval_rope(config: Config, num_layers: int) -> Sequence[int]:
    """SmolLM3 and Llama 4: every fourth layer has no rotary embedding (0), all others have one (1)."""
    interval = whole_number(config, "no_rope_layer_interval", 4)
    return [int((index + 1) % interval != 0) for index in range(num_layers)]


def smollm3_attention(config: Config, num_layers: int) -> Sequence[str]:
    """SmolLM3: layers without rotary embedding have the sliding window."""
    window = config.get("use_sliding_window") and config.get("sliding_window") is not None
    rope = NO_ROPE.read(config, num_layers)
    return ["sliding_attention" if window and not has_rope else "full_attention" for has_rope in rope]


def llama4_attention(config: Config, num_layers: int) -> Sequence[str]:
    """Llama 4: layers with rotary embedding have chunked attention."""
    rope = LLAMA4_ROPE.read(config, num_layers)
    return ["chunked_attention" if has_rope else "full_attention" for has_rope in rope]


def llama4_experts() -> LayerField:
    """Llama 4: ``moe_layers``; default: every ``interleave_moe_layer_step``-th (configuration_llama4.py)."""
    stated = indices("moe_layers")

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        if config.get("moe_layers") is not None:
            return stated.read(config, num_layers)
        step = max(1, whole_number(config, "interleave_moe_layer_step", 1))
        return [(index + 1) % step == 0 for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        if config.get("moe_layers") is None and list(read(config, len(values))) == list(values):
            return {}
        return {"moe_layers": [index for index, holds in enumerate(values) if holds]}

    return LayerField("moe_layers", read, write, reads=("interleave_moe_layer_step",))


def listed_full(config: Config, num_layers: int) -> Sequence[str]:
    """LFM2: the layers in ``full_attn_idxs`` have full attention, all others are convolutions."""
    full = config.get("full_attn_idxs")
    return ["full_attention" if full is None or index in full else "conv" for index in range(num_layers)]


def empty_is_absent(field: LayerField) -> LayerField:
    """Llama 4 treats an empty list as absent."""

    def dropped(config: Config) -> Config:
        return {key: value for key, value in config.items() if key != field.key or value}

    return LayerField(
        field.key,
        lambda config, num_layers: field.read(dropped(config), num_layers),
        lambda config, values: field.write(dropped(config), values),
        reads=field.reads,
    )


def qwen_experts() -> LayerField:
    """Qwen: every ``decoder_sparse_step``-th layer that is not in ``mlp_only_layers`` has experts.

    A plan that breaks the step is written as a list (modeling_qwen2_moe.py).
    """
    dense = indices("mlp_only_layers")

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        step = max(1, whole_number(config, "decoder_sparse_step", 1))
        only = dense.read(config, num_layers)
        return [not only[index] and (index + 1) % step == 0 for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        if not config.get("mlp_only_layers") and list(read(config, len(values))) == list(values):
            return {}
        return {"decoder_sparse_step": 1, "mlp_only_layers": [index for index, holds in enumerate(values) if not holds]}

    return LayerField("mlp_only_layers and decoder_sparse_step", read, write)


def experts_by_frequency(config: Config, index: int, num_layers: int) -> bool:
    """DeepSeek's custom code: every ``moe_layer_freq``-th layer may have experts."""
    return index % max(1, whole_number(config, "moe_layer_freq", 1)) == 0


def at_offset(period: str, offset: str, defaults: tuple[int, int]) -> LayerField:
    """Jamba: the layers ``offset``, ``offset + period``, .. are special."""

    def special(config: Config, index: int, num_layers: int) -> bool:
        return index % whole_number(config, period, defaults[0]) == whole_number(config, offset, defaults[1])

    return derived(f"{period} and {offset}", special)


def ernie_moe() -> LayerField:
    """ERNIE 4.5: every ``moe_layer_interval``-th layer between two indices has experts (modeling_ernie4_5_moe.py)."""

    def read(config: Config, num_layers: int) -> Sequence[bool]:
        start, end = whole_number(config, "moe_layer_start_index", 1), whole_number(config, "moe_layer_end_index", -1)
        step = whole_number(config, "moe_layer_interval", 1)
        end = num_layers - 1 if end == -1 else end
        return [start <= index <= end and (index + 1) % step == 0 for index in range(num_layers)]

    def write(config: Config, values: Sequence[bool]) -> dict[str, Any]:
        experts = [index for index, holds in enumerate(values) if holds]
        return {"moe_layer_start_index": experts[0], "moe_layer_end_index": experts[-1]} if experts else {}

    return LayerField("moe_layer_start_index moe_layer_end_index moe_layer_interval", read, write)


def spelled_out(pairs: Sequence[Any], num_layers: int) -> Sequence[str]:
    """GPT-Neo: ``[[["global", "local"], 12]]``."""
    return [kind for kinds, times in pairs for kind in list(kinds) * times]


def repeated(pattern: Sequence[str], num_layers: int) -> Sequence[str]:
    """Recurrent Gemma: the pattern repeats up to the last layer."""
    return [pattern[index % len(pattern)] for index in range(num_layers)]


def nemotron_blocks() -> LayerField:
    """Nemotron-H: a list, or a string with one letter per layer; transformers prefers the list.

    Without either it builds a model of four layers, whatever ``num_hidden_layers`` is (configuration_nemotron_h.py).
    """
    letters = {"linear_attention": "M", "mamba": "M", "moe": "E", "full_attention": "*", "attention": "*", "mlp": "-"}
    blocks = recoded("layers_block_type", lambda names, n: [letters[name] for name in names], list)
    pattern = recoded("hybrid_override_pattern", lambda text, n: list(text), "".join)

    def read(config: Config, num_layers: int) -> Sequence[str]:
        given = [field.read(config, num_layers) for field in (blocks, pattern) if config.get(field.key) is not None]
        if not given or given[0] != given[-1]:
            missing = "neither exists, so transformers would build a model of four layers"
            raise CheckpointError(
                f"config.json: layers_block_type, hybrid_override_pattern: {'they disagree' if given else missing}; "
                "expected the type of each layer. Restore one of them"
            )
        return given[0]

    def write(config: Config, values: Sequence[str]) -> dict[str, Any]:
        names = {letters[name]: name for name in config.get("layers_block_type") or ()}
        listed_blocks = {"layers_block_type": [names[letter] for letter in values]} if names else {}
        return listed_blocks | pattern.write(config, values)

    return LayerField("layers_block_type hybrid_override_pattern", read, write)


def scaled_by_depth() -> LayerField:
    """MiniCPM: residual branches are multiplied by ``scale_depth / sqrt(depth)`` (modeling_minicpm3.py).

    Each copy keeps the factor that its layer was trained with.
    """

    def read(config: Config, num_layers: int) -> Sequence[float]:
        scale = config.get("scale_depth", 1.4)
        return [1.0 if scale is None else round(scale / math.sqrt(num_layers), 12)] * num_layers

    def write(config: Config, values: Sequence[float]) -> dict[str, Any]:
        scale = config.get("scale_depth", 1.4)
        return {} if scale is None else {"scale_depth": values[0] * math.sqrt(len(values))}

    return LayerField("scale_depth", read, write)


def full_at_the_top() -> LayerField:
    """Gemma 4: the last layer always has full attention, whatever the list says (configuration_gemma4.py)."""
    types = listed("layer_types")

    def read(config: Config, num_layers: int) -> Sequence[str]:
        return [*types.read(config, num_layers)[:-1], "full_attention"]

    return LayerField("layer_types", read, types.write)


def is_first(config: Config, index: int, num_layers: int) -> bool:
    """Whether it is the first layer."""
    return index == 0


def is_last(config: Config, index: int, num_layers: int) -> bool:
    """Whether it is the last layer."""
    return index == num_layers - 1


NO_ROPE = listed("no_rope_layers", interval_rope)._replace(reads=("no_rope_layer_interval",))
LLAMA4_ROPE = empty_is_absent(NO_ROPE)
