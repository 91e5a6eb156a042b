"""Detect unknown config keys that could describe individual layers. Pure.

A key that refers to layers and is copied unchanged silently gives a wrong model. So for a model with custom code, every
key has to be known to be harmless. For model types of transformers, whose keys are in the table, only values that look
like per-layer data are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.architectures.layer_fields import Config


def words(*texts: str) -> frozenset[str]:
    """Split texts into words."""
    return frozenset(" ".join(texts).split())


LISTS = words(
    """
    architectures axial_pos_shape bad_words_ids begin_suppress_tokens suppress_tokens forced_decoder_ids keys_to_ignore
    languages tags keys_to_ignore_at_inference moe_capacity time_step_limit mlp_multipliers ssm_multipliers
    """
)
"""Lists that are never per-layer, whatever their length and values."""

MAPS = words(
    """
    auto_map compression_config custom_pipelines generation_config id2label label2id quantization quantization_config
    rope_parameters rope_scaling rotary solar_plugins task_specific_params vision_config audio_config
    """
)
"""Maps that do not describe the decoder's layers, or that another module handles."""

SCALARS = words(
    # of any config that transformers or a trainer writes
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path
    chunk_size_feed_forward diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task gradient_checkpointing is_decoder is_encoder_decoder language
    length_penalty license max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences onnx_safe output_attentions output_hidden_states output_scores prefix problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate summary_activation
    summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type summary_use_proj tf_legacy_loss
    tie_embeddings tie_encoder_decoder tie_lm_head tie_weights tie_word_embedding tie_word_embeddings
    tokenizer_class top_k top_p torchscript typical_p unsloth_fixed use_bfloat16 verbose
    """,
    # widths and counts that are equal in all layers
    """
    attention_chunk_size block_multiple_of chunk_size compression_ratio conv_L_cache conv_kernel d_ff d_head d_inner
    d_model dense_intermediate_size dim_model_base embedding_fraction expand expansion_ratio index_head_dim
    index_n_heads index_topk intermediate_size_mlp linear_conv_kernel_dim linear_head_dim linear_key_head_dim
    linear_num_heads linear_num_key_heads linear_num_value_heads linear_value_head_dim mamba_chunk_size mamba_d_conv
    mamba_d_head mamba_d_ssm mamba_d_state mamba_expand moe_gate moe_k moe_num_shared_experts
    moe_shared_expert_intermediate_size moe_top_k multi_query_group_num multiple_of n_ctx n_embd n_group n_inner
    n_shared_experts n_shared_head num_expert_group num_local_experts num_logits_to_keep num_query_groups
    num_shared_expert num_shared_experts router_top_k shared_expert_intermediate_size shared_intermediate_size
    short_conv_kernel_size topk_group zero_expert_num
    """,
    # what is done in every layer
    """
    alibi alibi_bias_max apply_residual_connection_post_layernorm attn_dropout_rate attn_temperature_tuning bf16
    bias clip_qkv compress_rope_theta do_layer_norm_before dropout_rate floor_scale fp16 fp32
    fp32_residual_connection gate_soft_cap hidden_dropout_rate init_div_is_residual input_mult kda_lower_bound
    kda_safe_gate layerdrop logits_soft_cap max_position_embeddings moe_eval_capacity_token_fraction moe_norm_min
    moe_shared_expert_overlap n_positions new_decoder_architecture original_max_position_embeddings output_mult
    parallel_attn parallel_residual partial_rotary_factor pos_emb position_embedding_type post_norm pre_norm
    query_pre_attn_scalar rescale_prenorm_residual residual_dropout residual_in_fp32 residual_multiplier rope_base
    rope_interleave rope_pct rope_ratio rotary_base rotary_emb_base rotary_pct rotary_percentage sandwich_norm
    scale_emb seq_aux sliding_window sliding_window_size swiglu_limit time_step_floor time_step_init_scheme
    time_step_max time_step_min time_step_rank time_step_scale use_parallel_residual use_position_ids
    use_sliding_window weight_tying
    """,
)
"""Numbers, strings and switches that apply to all layers, and whose names are not made of the words below."""

WORDS = words(
    """
    activated activation add affine attention attn attns audio autocast aux balance balancing bf16 bfloat16 biases
    by cache causal classifier combine context conv d device div dot dt dynamic elementwise emb embd embed embedding
    enable enabled ep eval expert fan feed ffn final flash float32 forward fp32 free fused gate gated gating glu gqa
    grouped has head hidden image in init initializer inner input intermediate is jitter k kernels key kv l2 lambda
    latent learnable learned limited lm ln load log logit logits logn lora loss lru mamba mask math max mem min mla
    mlp mm model moe multi mup music n native ngram no noise nope norm normalize ntk num o of original out output
    pad padded parallel patch per pool pooling pos post pre prenorm pretraining proj q qk qkv query random rel
    relative renormalize rescale reset resid rms rmsnorm rope rotary route routed router routing safe scaled score
    scoring sdpa selected selection seq sequence short sink sinks soft softcap softmax special ssm stable state swa
    swiglu text time tok token tokenizer tokens torch train trainable training transformers truncation type uniform
    unpadded unsloth upcast use v value vision vocab vocabulary w weight weights width word words world xpos yarn z
    zero
    """
)
"""Words for the subject of a key. None of them refers to positions in the stack."""

NUMBERS = words(
    """
    alpha beta bias bound capacity channels coef coeff coefficient decay dim dims dropout embeddings eps epsilon
    experts extent factor gain groups head heads lambda len length multiplier noise pdrop prob probs range rank
    scale scaling seed size sizes softcap softcapping std temperature theta tok topk tp truncation vocab weight
    weights width
    """
)
"""The last word of keys with numeric values."""

TEXTS = words(
    """
    act activation device dtype fn func function impl implementation method mode name nonlinearity path scheme
    type version
    """
)
"""The last word of keys whose value is a name."""

SPECIAL_TOKEN = re.compile(r"(?:^|_)(?:bos|eos|eod|pad|unk|sep|cls|token|tokens)_(?:id|ids|index|idx)$|_token$")
PREDICTION = re.compile(r"(?:num_|n_|use_)?(?:mtp|nextn)(?:_|$)")
"""Keys of multi-token-prediction layers, which follow the decoder's and are copied unchanged."""
PLACE = re.compile(r"layer|every|interval|period|pattern|skip")
"""Keys inside an otherwise accepted map that refer to individual layers."""
_SOME, _REST = "local|sliding|slide|swa|window|linear|mamba|ssm|sparse|chunk", "global|full|dense|softmax"
MIXED = re.compile(
    rf"altern|hybrid|interleav|every|even|odd|mixed|,|\d_?to_?\d|(?:{_SOME}).*(?:{_REST})|(?:{_REST}).*(?:{_SOME})"
)
"""Strings that describe several kinds of layers."""
PERIOD = re.compile(r"(?:^|_)(?:freq|frequency|interval|period|step)(?:_|$)")
LAYER_NUMBERS = re.compile(r"\s*\d+(?:\s*[,;:\s]\s*\d+)+\s*")
PATTERN = re.compile(r"[A-Z0-9*|+\-]{3,}")

REMEDY = (
    "If you are sure that {each} not describe individual layers, or that the value also fits the deeper model, trust "
    "it with solar.init.trust_config_keys: [{keys}] in the recipe, or {options} on the command line. The new "
    "config.json records it"
)


def refuse_layer_keys(
    config: Config,
    num_layers: int,
    *,
    num_prediction_layers: int,
    known: Collection[str],
    trusted: Collection[str],
    own_code: bool,
) -> None:
    """Refuse a config with unknown keys that could describe individual layers.

    Args:
        config: The config of the decoder.
        num_layers: Its depth.
        num_prediction_layers: Layers after the decoder's; some lists have entries for them, too.
        known: Keys that are handled or need no handling.
        trusted: Keys, or ``outer.inner`` in a map, that the user trusts.
        own_code: Whether custom code reads the config; then every key has to be known to be harmless.

    Raises:
        CheckpointError: There is such a key; the message lists all of them and how to trust them. Or a trusted key does
            not exist.
    """
    absent = sorted(key for key in trusted if not _has(config, key))
    if absent:
        raise CheckpointError(f"trust_config_keys: {absent[0]!r} is not a key of the base's config.json; remove it")
    depths = {num_layers, num_layers + num_prediction_layers} - {1}
    suspects = dict(_suspects(config, depths, {*known, *trusted}, own_code=own_code))
    if not suspects:
        return
    found = "; ".join(f"{key} ({_at(config, key)!r:.80}) {reason}" for key, reason in suspects.items())
    reader = (
        "custom code reads it, so its effect is not known"
        if own_code
        else "it is not a known key of this model type; transformers may ignore it, but other engines may not"
    )
    remedy = REMEDY.format(
        each="they do" if len(suspects) > 1 else "it does",
        keys=", ".join(suspects),
        options=" ".join(f"--trust-config-key {key}" for key in suspects),
    )
    raise CheckpointError(f"config.json: {found}; {reader}. Refused, because layers could silently change. {remedy}")


def _suspects(
    config: Config, depths: Collection[int], passed: Collection[str], *, own_code: bool, where: str = ""
) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        path = f"{where}{key}"
        if path in passed or SPECIAL_TOKEN.search(key) or PREDICTION.match(key):
            continue
        if key in LISTS and isinstance(value, list):
            continue
        if key in MAPS and isinstance(value, Mapping):
            if own_code and key.startswith(("rope", "rotary")):
                yield from ((f"{path}.{inner}", "refers to layers") for inner in value if PLACE.search(inner))
            continue
        if reason := _layer_data(value, depths):
            yield path, reason
        elif isinstance(value, Mapping):
            yield from _suspects(value, depths, passed, own_code=own_code, where=f"{path}.")
        elif own_code and not _is_harmless(key, value):
            yield path, "is not known to apply to all layers"


def _layer_data(value: Any, depths: Collection[int]) -> str | None:
    """Why a value looks like per-layer data or layer numbers; None if it does not."""
    if isinstance(value, Mapping) and value and all(str(inner).isdecimal() for inner in value):
        return "is keyed by numbers"
    if len(value) in depths if isinstance(value, list) else isinstance(value, str) and _is_pattern(value, depths):
        return f"has {len(value)} entries, as many as the base has layers"
    numbers = list(_flat(value)) if isinstance(value, list) else []
    if numbers and all(type(number) is int and 0 <= number <= max(depths, default=1) for number in numbers):
        return "has numbers that could be layer numbers"
    if isinstance(value, str) and LAYER_NUMBERS.fullmatch(value):
        return "has numbers that could be layer numbers"
    return None


def _is_pattern(text: str, depths: Collection[int] = ()) -> bool:
    """Whether a string looks like ``MMAM``, one letter per layer; without depths, for any number of layers."""
    return bool(PATTERN.fullmatch(text)) and len(set(text)) < len(text) and (not depths or len(text) in depths)


def _flat(values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from _flat(value) if isinstance(value, list) else [value]


def _is_harmless(key: str, value: Any) -> bool:
    """Whether a key that custom code reads is known to apply to all layers."""
    if value is None or value is False or value in ("", [], {}):
        return True  # Disabled.
    if isinstance(value, list):
        return False
    if key in SCALARS or (PERIOD.search(key) and value == 1):  # Applies to every layer.
        return True
    parts = re.sub(r"layer_?norm", "norm", key.strip("_").lower()).split("_")
    if not all(part in WORDS or part in NUMBERS or part in TEXTS for part in parts):
        return False
    if isinstance(value, str):
        return value == "auto" or (parts[-1] in TEXTS and not _is_pattern(value) and not MIXED.search(value.lower()))
    return isinstance(value, bool) or parts[-1] in NUMBERS


def _has(config: Config, path: str) -> bool:
    outer, _, inner = path.partition(".")
    value = config.get(outer)
    return path in config or bool(inner and isinstance(value, Mapping) and _has(value, inner))


def _at(config: Config, path: str) -> Any:
    outer, _, inner = path.partition(".")
    return config[path] if path in config else _at(config[outer], inner)
