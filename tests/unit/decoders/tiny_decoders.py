"""Tiny random models of every causal LM type that the installed transformers knows."""

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NUM_LAYERS = 9
EVERY_TYPE = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers")

WIDTHS = {
    32: "hidden_size n_embd d_model dim word_embed_proj_dim embedding_size attention_hidden_size lru_width",
    48: "intermediate_size ffn_dim n_inner ffn_hidden_size d_ff decoder_ffn_dim encoder_ffn_dim dim_ff dff",
    64: "d_inner mamba_d_ssm max_position_embeddings n_positions n_ctx seq_length max_seq_len",
    16: "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank shared_intermediate_size "
    "moe_shared_expert_intermediate_size o_lora_rank rel_extent",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_d_state mamba_n_heads mamba_d_head state_size "
    "mamba_chunk_size chunk_size linear_key_head_dim linear_value_head_dim d_head hidden_size_per_layer_input "
    "laurel_rank dim_head index_head_dim linear_head_dim swa_head_dim indexer_head_dim",
    4: "num_attention_heads n_head n_heads num_heads sliding_window window_size attention_window num_experts "
    "num_local_experts n_routed_experts moe_num_experts mamba_dt_rank time_step_rank linear_num_value_heads "
    "linear_conv_kernel_dim rotary_dim decoder_attention_heads encoder_attention_heads num_encoder_attention_heads "
    "num_decoder_attention_heads block_size index_topk swa_num_attention_heads sliding_window_size d_rel "
    "linear_num_heads prompt_types prompt_length segment_types",
    2: "num_key_value_heads num_experts_per_tok moe_k moe_topk top_k_experts mamba_expand linear_num_key_heads "
    "encoder_layers type_vocab_size eos_token_id index_n_heads swa_num_key_value_heads indexer_n_heads o_groups",
    1: "n_group topk_group mamba_n_groups bos_token_id decoder_start_token_id indexer_kv_heads",
    0: "pad_token_id",
    128: "vocab_size vocab_size_per_layer_input",
}
SMALL = {key: width for width, keys in WIDTHS.items() for key in keys.split()}
MAY_BE_NONE = ("pad_token_id", "bos_token_id", "eos_token_id", "head_dim", "n_inner", "num_key_value_heads")

LATENT = {"num_key_value_heads": 4, "head_dim": 8}
AS_DECODER = {"is_decoder": True}
THIRDS = ["sliding_attention", "sliding_attention", "full_attention"] * 3
OF_THREE = ["local", "lsh", "local"] * 3

NEEDED = {
    **dict.fromkeys(["axk1", "axk2", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"], LATENT),
    **dict.fromkeys(["minicpm3", "youtu", "kimi_linear"], LATENT),
    **dict.fromkeys(
        ["bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert"],
        AS_DECODER,
    ),
    **dict.fromkeys(["roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"], AS_DECODER),
    "bailing_hybrid": LATENT | {"first_k_dense_replace": 2},
    "bamba": {"attn_layer_indices": [2, 4, 7]},
    "big_bird": AS_DECODER | {"attention_type": "original_full"},
    "cohere_compass_text": {
        "layer_types": THIRDS,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]} for kind in set(THIRDS)
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT | {"num_experts_per_tok": 2, "first_k_dense_replace": 2},
    "deepseek_v3": LATENT | {"first_k_dense_replace": 2},
    "deepseek_v4": {"num_key_value_heads": 1},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 2,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 4], [["global"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "mamba", "attention"] * 3},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 3, "expert_layer_offset": 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention"] * 3},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"] * 3},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "mamba", "moe", "mamba", "attention", "moe", "mamba"]
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "reformer": AS_DECODER
    | {
        "attn_layers": OF_THREE,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
    },
    "roc_bert": AS_DECODER
    | {"shape_vocab_size": 64, "pronunciation_vocab_size": 64, "shape_embed_dim": 32, "pronunciation_embed_dim": 32},
    "xmod": AS_DECODER | {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a tiny config needs beyond its widths, so that it is valid and its layers differ."""

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,  # as many as the decoder has: a mix-up would show
    "depth": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "global_head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
    "output_channels": 32,
    "mlp_dim": 48,
    "global_attn_indexes": [2],
    "vision_output_dim": 32,
    "projector_input_dim": 32,
    "projector_output_dim": 32,
    "window_size": 2,
    "num_position_embeddings": 16,
    "position_embedding_size": 16,
    "mm_embed_dim": 32,
}

VARIANTS = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, untied from a tied type": ("gemma", {"tie_word_embeddings": False}),
    "qwen2, window above": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4}),
    "qwen3, window above": ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4}),
    "qwen2_moe, dense by list": ("qwen2_moe", {"mlp_only_layers": [0, 4, 5]}),
    "qwen3_moe, dense by list": ("qwen3_moe", {"mlp_only_layers": [1, 2, 6]}),
    "qwen3_moe, dense by step": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3_next, dense by list": ("qwen3_next", {"mlp_only_layers": [0, 3, 7]}),
    "deepseek_v3, all dense": ("deepseek_v3", LATENT | {"first_k_dense_replace": NUM_LAYERS}),
    "deepseek_v3, three dense": ("deepseek_v3", LATENT | {"first_k_dense_replace": 3}),
    "ernie4_5_moe, some dense": ("ernie4_5_moe", {"moe_layer_start_index": 2, "moe_layer_end_index": 8}),
    "granite_swa, rope by layer": ("granite_swa", {"layer_rope_theta": [1e4 * (i + 1) for i in range(NUM_LAYERS)]}),
    "smollm3, window": ("smollm3", {"use_sliding_window": True, "sliding_window": 4}),
    "smollm3, rope by list": ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 0, 0, 1, 1, 1]}),
    "llama4_text, experts by list": ("llama4_text", {"moe_layers": [1, 4, 5], "attention_chunk_size": 4}),
    "laguna, heads by layer": ("laguna", {"num_attention_heads_per_layer": [4, 2, 4, 4, 2, 2, 4, 2, 4]}),
    "gpt2, tied not": ("gpt2", {"tie_word_embeddings": False}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mistral, window": ("mistral", {"sliding_window": 4}),
    "mamba2, tied": ("mamba2", {"num_heads": 8, "head_dim": 8, "tie_word_embeddings": True}),
    "recurrent_gemma, other pattern": (
        "recurrent_gemma",
        {"block_types": ["recurrent", "attention"]},
    ),
    "opt, norm after": ("opt", {"do_layer_norm_before": False}),
    "modernbert-decoder, other pattern": ("modernbert-decoder", {"layer_types": THIRDS}),
    "gemma4_text, keys shared": (
        "gemma4_text",
        {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 3, "layer_types": THIRDS},
    ),
    "gpt2, scaled by position": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
}
"""Further models of types that have a tiny model already: name -> (model type, config)."""


def tiny_config(model_type, **changes):
    """The config of a tiny model with `NUM_LAYERS` layers; of a model of more than text, all parts tiny."""
    config_class = CONFIG_MAPPING[model_type]
    default = config_class().to_dict()
    if isinstance(default.get("text_config"), dict):
        text = default["text_config"]["model_type"]
        parts = {"text_config": tiny_config(text, **changes).to_dict(), "vision_config": VISION}
        return config_class(
            **{part: value for part, value in parts.items() if part in default or part == "text_config"}
        )
    aliases = getattr(config_class, "attribute_map", {})
    known = {key: value for key, value in SMALL.items() if key in default or key in aliases}
    known = {key: value for key, value in known.items() if aliases.get(key) not in known}
    small = {key: value for key, value in known.items() if default.get(key, 0) is not None or key in MAY_BE_NONE}
    depth = {key: NUM_LAYERS for key in DEPTH_KEYS if key in default}
    return config_class(**{**small, **depth, **NEEDED.get(model_type, {}), **changes})
