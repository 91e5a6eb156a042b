"""The supported model types, one row each. Pure data.

The tests compare every type with its rearranged transformers modules; `docs/architectures.md` has the results. The rows
follow the configuration and modeling files of transformers 5.20.

To add an architecture, add a row to `ARCHITECTURES` and a tiny model to the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from solar_plugins.upscaling.architectures import families as family
from solar_plugins.upscaling.architectures.layer_fields import (
    LayerField,
    derived,
    indices,
    leading,
    leading_hint,
    listed,
    optional_list,
    recoded,
    restated,
)
from solar_plugins.upscaling.architectures.spellings import Spelling, depth_spellings


class Architecture(NamedTuple):
    """The layout of a model type."""

    layers_prefix: str = "model.layers."
    """Tensors of layer ``i`` are called ``<layers_prefix><i>.<rest>``; leading parts may be missing or added."""
    depth_key: str = "num_hidden_layers"
    fields: tuple[LayerField, ...] = ()
    """Per-layer properties. Empty if all layers have the same."""
    residual_writers: tuple[str, ...] = ()
    """The modules of a layer whose output is added directly to the residual stream. With zero weights and biases the
    layer is a trainable identity. Empty if not tested, or if a norm follows them, whose gradient at zero would make the
    layer diverge in the first step; identity layers are then refused."""
    other_prefixes: tuple[str, ...] = ()
    """Other spellings of ``layers_prefix``."""
    more_depth_keys: tuple[str, ...] = ()
    """Keys that repeat the depth: a number, or a list or string with one entry per layer. One of them is enough."""
    other_spellings: tuple[Spelling, ...] = ()
    """Other names of keys that follow the plan, except for the common names of the depth."""
    stored_with: Mapping[str, str] = {}
    """A layer with the first tensor must have the second; a model would otherwise derive it from the position."""
    must_be_unset: Mapping[str, str] = {}
    """Keys that enable features which copying layers would break, with the reason."""

    @property
    def spellings(self) -> tuple[Spelling, ...]:
        """All other names of keys that follow the plan."""
        own = {spelling.name for spelling in self.other_spellings}
        depth = (spelling for spelling in depth_spellings(self.depth_key) if spelling.name not in own)
        return (*self.other_spellings, *depth)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All spellings of the prefix."""
        return (self.layers_prefix, *self.other_prefixes)

    @property
    def stack(self) -> str:
        """The last part of the prefix, such as ``layers``."""
        return self.layers_prefix.split(".")[-2]

    def is_prefix(self, text: str) -> bool:
        """Whether ``text``, such as ``layers.`` or ``base.model.layers.``, is the prefix of the decoder layers.

        Leading parts may be missing or added. The prefixes of other stacks, such as a vision tower's, do not match.
        """
        parts = text.split(".")[:-1]
        known = (prefix.split(".")[:-1] for prefix in self.prefixes)
        return any(parts[-min(len(parts), len(one)) :] == one[-min(len(parts), len(one)) :] for one in known)


_TYPES, _MLP = listed("layer_types"), listed("mlp_layer_types")
_WINDOW_HINT = leading_hint("max_window_layers")
_QWEN_WINDOW = (listed("layer_types", family.upper_window), _WINDOW_HINT)
_QWEN_EXPERTS = family.qwen_experts()
_DENSE_FIRST = leading("first_k_dense_replace")
_EXPERTS_EVERY = derived("moe_layer_freq", family.experts_by_frequency)
_LINEAR_EVERY_4 = family.every("full_attention_interval", 4, else_="linear_attention")

_GEMMA_3N = {
    "hidden_size_per_layer_input": "each layer has its own columns in one large embedding, which would have to be "
    "rewritten",
    "num_kv_shared_layers": "the upper layers reuse keys and values of a lower layer, by position",
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")
_PLAIN = Architecture(residual_writers=_WRITERS)
_WITH_TYPES = Architecture(fields=(_TYPES,))
_DENSE_HINT = leading_hint("first_k_dense_replace")
_MIMO_TYPES, _MIMO_MLP = listed("layer_types", family.mimo_attention), family.leading_dense(1)
_KIMI_TYPES = listed("layer_types", family.kimi_attention)
_NO_SHARED_CACHE = {"use_cla": "some layers reuse keys and values of a lower layer, by position"}
_WITH_BOTH = Architecture(fields=(_TYPES, _MLP, _DENSE_HINT))

_SAME_EVERYWHERE = (
    "aria_text bitnet doge falcon_h1 flex_olmo glm4 granitemoe granitemoeshared "
    "hyperclovax jais2 jetmoe mixtral nanochat nemotron olmo2 olmoe persimmon phimoe solar_open "
    "stablelm youtu"
).split()
_PLAIN_TYPES = (
    "llama mistral apertus arcee cohere ernie4_5 gemma glm granite helium ministral3 olmo phi3 seed_oss"
).split()

ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(_PLAIN_TYPES, _PLAIN),
    **dict.fromkeys(_SAME_EVERYWHERE, Architecture()),
    "hunyuan_v1_dense": _PLAIN._replace(must_be_unset=_NO_SHARED_CACHE),
    "hunyuan_v1_moe": Architecture(
        fields=tuple(
            optional_list(key)
            for key in ("moe_topk", "num_experts_per_tok", "num_experts", "moe_intermediate_size", "num_shared_expert")
        ),
        must_be_unset=_NO_SHARED_CACHE,
    ),
    "minimax_m2": Architecture(
        fields=(restated("attn_type_list", derived("full attention everywhere", lambda *_: "full_attention")),)
    ),
    "phi": Architecture(residual_writers=("self_attn.dense", "mlp.fc2")),
    "starcoder2": Architecture(residual_writers=("self_attn.o_proj", "mlp.c_proj")),
    # Depth under other names.
    "longcat_flash": Architecture(
        depth_key="num_layers",
        other_spellings=(Spelling("num_hidden_layers", "num_layers", 2),),  # two attention blocks a layer
    ),
    "gpt2": Architecture(
        "transformer.h.",
        "n_layer",
        residual_writers=("attn.c_proj", "mlp.c_proj"),
        must_be_unset={"scale_attn_by_inverse_layer_idx": "attention is scaled by the layer's position"},
    ),
    "gpt_bigcode": Architecture("transformer.h.", "n_layer"),
    "gptj": Architecture("transformer.h.", "n_layer"),
    "codegen": Architecture("transformer.h.", "n_layer"),
    "ctrl": Architecture("transformer.h.", "n_layer"),
    "openai-gpt": Architecture("transformer.h.", "n_layer"),
    "bloom": Architecture("transformer.h.", "n_layer"),
    "dbrx": Architecture("transformer.blocks.", "n_layers"),
    "mpt": Architecture("transformer.blocks.", "n_layers"),
    "falcon": Architecture("transformer.h."),
    "gpt_neox": Architecture("gpt_neox.layers.", residual_writers=("attention.dense", "mlp.dense_4h_to_h")),
    "gpt_neox_japanese": Architecture(
        "gpt_neox_japanese.layers.", fields=(derived("a bias of the last layer", family.is_last),)
    ),
    "opt": Architecture("model.decoder.layers."),
    "xglm": Architecture("model.layers.", "num_layers"),
    "biogpt": Architecture("biogpt.layers."),
    "cpmant": Architecture("cpmant.encoder.layers."),
    "rwkv": Architecture("rwkv.blocks.", fields=(derived("the norm before the first block", family.is_first),)),
    "xlstm": Architecture("backbone.blocks.", more_depth_keys=("num_blocks",)),
    "minicpm3": Architecture(fields=(family.scaled_by_depth(),)),
    "mamba": Architecture("backbone.layers."),
    "mamba2": Architecture("backbone.layers."),
    "falcon_mamba": Architecture("backbone.layers."),
    "xlnet": Architecture("transformer.layer.", "n_layer"),
    # Attention that differs by layer.
    "gemma2": Architecture(fields=(family.every("-", 2),)),
    "vaultgemma": Architecture(fields=(family.every("-", 2),), residual_writers=_WRITERS),
    "gpt_oss": Architecture(fields=(family.every("-", 2),)),
    "gemma3_text": Architecture(fields=(family.every("sliding_window_pattern", 6),)),
    "cohere2": Architecture(fields=(family.every("sliding_window_pattern", 4),), residual_writers=_WRITERS),
    "olmo3": Architecture(fields=(family.every("-", 4),)),
    "ministral": Architecture(fields=(listed("layer_types", family.window_everywhere),), residual_writers=_WRITERS),
    "qwen2": Architecture(fields=_QWEN_WINDOW, residual_writers=_WRITERS),
    "qwen3": Architecture(fields=_QWEN_WINDOW, residual_writers=_WRITERS),
    "smollm3": Architecture(
        fields=(family.NO_ROPE, listed("layer_types", family.smollm3_attention)), residual_writers=_WRITERS
    ),
    "gpt_neo": Architecture(
        "transformer.h.",
        "num_layers",
        fields=(
            recoded(
                "attention_types", family.spelled_out, lambda kinds: [[[kind], 1] for kind in kinds], required=True
            ),
            optional_list("attention_layers"),
        ),
    ),
    **dict.fromkeys(("cohere_compass_text", "cwm", "exaone4", "kolibri1"), _WITH_TYPES),
    "modernbert-decoder": Architecture(
        fields=(_TYPES, derived("the missing norm of the first layer", family.is_first)),
    ),
    "zaya": Architecture(fields=(_TYPES, derived("the router of the first layer", family.is_first))),
    "granite_swa": Architecture(fields=(_TYPES, optional_list("layer_rope_theta"))),
    "granitemoe_swa": Architecture(fields=(_TYPES, optional_list("layer_rope_theta"))),
    # Attention and state space, linear attention or convolution.
    "bamba": Architecture(fields=(indices("attn_layer_indices"),)),
    "granitemoehybrid": _WITH_TYPES._replace(other_spellings=(Spelling("layers_block_type", "layer_types"),)),
    "jamba": Architecture(
        fields=(
            family.at_offset("attn_layer_period", "attn_layer_offset", (8, 4)),
            family.at_offset("expert_layer_period", "expert_layer_offset", (2, 1)),
        )
    ),
    "lfm2": Architecture(fields=(listed("layer_types", family.listed_full), indices("full_attn_idxs"))),
    "lfm2_moe": Architecture(fields=(_TYPES, leading("num_dense_layers", 2))),
    "minimax": Architecture(fields=(_TYPES,), stored_with={"self_attn.qkv_proj.weight": "self_attn.slope_rate"}),
    "nemotron_h": Architecture(
        other_prefixes=("backbone.layers.",),
        more_depth_keys=("layers_block_type", "hybrid_override_pattern"),
        other_spellings=(Spelling("layer_types", "layers_block_type"),),
        fields=(family.nemotron_blocks(),),
    ),
    "olmo_hybrid": _WITH_TYPES,
    "qwen3_next": Architecture(fields=(_LINEAR_EVERY_4, _QWEN_EXPERTS)),
    "qwen3_5_text": Architecture(fields=(_LINEAR_EVERY_4,)),
    "qwen3_5_moe_text": Architecture(fields=(_LINEAR_EVERY_4,)),
    "qwen4_exp_text": Architecture(fields=(_TYPES, indices("ple_layer_ids"))),
    "recurrent_gemma": Architecture(fields=(recoded("block_types", family.repeated, list),)),
    # Dense layers and experts.
    "afmoe": Architecture(fields=(family.every("global_attn_every_n_layers", 4), leading("num_dense_layers", 1))),
    "axk1": Architecture(fields=(_MLP, _DENSE_HINT)),
    "deepseek_v2": Architecture(fields=(_DENSE_FIRST, _EXPERTS_EVERY)),
    "deepseek_v3": Architecture(fields=(leading("first_k_dense_replace", 3), _EXPERTS_EVERY)),
    "dots1": Architecture(fields=(listed("layer_types", family.dots_window), _WINDOW_HINT, _DENSE_FIRST)),
    "ernie4_5_moe": Architecture(fields=(family.ernie_moe(),)),
    "glm4_moe": Architecture(fields=(leading("first_k_dense_replace", 1),)),
    "glm4_moe_lite": Architecture(fields=(_MLP,)),
    "hy_v3": Architecture(fields=(_MLP,)),
    "laguna": Architecture(fields=(_TYPES, _MLP, optional_list("num_attention_heads_per_layer"))),
    "llama4_text": Architecture(
        fields=(family.LLAMA4_ROPE, listed("layer_types", family.llama4_attention), family.llama4_experts()),
    ),
    "qwen2_moe": Architecture(
        fields=(listed("layer_types", family.lower_window), _WINDOW_HINT, _QWEN_EXPERTS),
    ),
    "qwen3_moe": Architecture(fields=(optional_list("layer_types"), _QWEN_EXPERTS)),
    **dict.fromkeys(
        ("axk2 bailing_hybrid cohere2_moe deepseek_v32 deepseek_v4 mellum minimax_m3_vl_text").split(),
        _WITH_BOTH,
    ),
    "exaone_moe": Architecture(
        fields=(
            family.every("sliding_window_pattern", 4),
            family.leading_dense(1),
            restated("is_moe_layer", family.leading_dense(1)),
            _DENSE_HINT,
        )
    ),
    "kimi_linear": Architecture(
        fields=(_KIMI_TYPES, family.kimi_lists(_KIMI_TYPES), family.leading_dense(1), _DENSE_HINT)
    ),
    "mimo_v2_flash": Architecture(
        fields=(
            _MIMO_TYPES,
            restated("hybrid_layer_pattern", _MIMO_TYPES),
            _MIMO_MLP,
            restated("moe_layer_freq", _MIMO_MLP),
            _DENSE_HINT,
        )
    ),
    "inkling_text": Architecture(fields=(_TYPES, _MLP, indices("local_layer_ids"))),
    "glm_moe_dsa": Architecture(fields=(_TYPES, _MLP, listed("indexer_types"), _DENSE_HINT)),
    "hy_v4": Architecture(fields=(_TYPES, _MLP, listed("indexer_types"))),
    "gemma4_text": Architecture(fields=(family.full_at_the_top(),), must_be_unset=_GEMMA_3N),
    "gemma4_unified_text": Architecture(fields=(family.full_at_the_top(),), must_be_unset=_GEMMA_3N),
    "reformer": Architecture(
        "reformer.encoder.layers.", more_depth_keys=("attn_layers",), fields=(listed("attn_layers"),)
    ),
    # Encoders that can be decoders.
    "bert": Architecture("bert.encoder.layer."),
    "bert-generation": Architecture("bert.encoder.layer."),
    "big_bird": Architecture("bert.encoder.layer."),
    "camembert": Architecture("roberta.encoder.layer."),
    "data2vec-text": Architecture("data2vec_text.encoder.layer."),
    "electra": Architecture("electra.encoder.layer."),
    "ernie": Architecture("ernie.encoder.layer."),
    "megatron-bert": Architecture("bert.encoder.layer."),
    "rembert": Architecture("rembert.encoder.layer."),
    "roberta": Architecture("roberta.encoder.layer."),
    "roberta-prelayernorm": Architecture("roberta_prelayernorm.encoder.layer."),
    "roc_bert": Architecture("roc_bert.encoder.layer."),
    "roformer": Architecture("roformer.encoder.layer."),
    "xlm-roberta": Architecture("roberta.encoder.layer."),
    "xlm-roberta-xl": Architecture("roberta.encoder.layer."),
    "xmod": Architecture("roberta.encoder.layer."),
    "trocr": Architecture("model.decoder.layers.", "decoder_layers"),
}

COMPOSITES: Mapping[str, tuple[str, ...]] = {
    "gemma3": ("model.language_model.layers.", "language_model.model.layers."),
    "gemma4": ("model.language_model.layers.",),
    "gemma4_unified": ("model.language_model.layers.",),
    "llama4": ("language_model.model.layers.", "model.layers."),
    "qwen3_5": ("model.language_model.layers.", "model.layers."),
    "qwen3_5_moe": ("model.language_model.layers.", "model.layers."),
    "qwen4_exp": ("model.language_model.layers.", "model.layers."),
    "got_ocr2": ("model.language_model.layers.", "language_model.model.layers."),
}
"""Multimodal models: their decoder's config is ``text_config``, whose model type has a row above. The values are the
prefixes of the decoder's layers."""

_ENCODER = (
    "it is the decoder of an encoder-decoder model; transformers takes the depth of its cache from the encoder, so a "
    "decoder of another depth cannot generate"
)
_SHARED_BLOCK = "one transformer block is shared by many layers, so a layer is not a unit that can be copied"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet whisper").split(),
        _ENCODER,
    ),
    "beam": "the residual stream is scaled by a layer's position, so a copy at another position would differ",
    "blt": "it has several stacks of layers (encoder, decoder, global), which one plan cannot describe",
    "diffllama": "the initial lambda of attention depends on a layer's position, so a copy at another position would "
    "differ",
    "emu3": "images are generated by a second model; only its text_config could be upscaled",
    "fuyu": "its decoder is a persimmon model inside a multimodal model",
    "gemma3n": "each layer has its own rows in one large embedding (see gemma3n_text)",
    "gemma3n_text": "each layer has its own columns in one large embedding, embed_tokens_per_layer, which would have "
    "to be rewritten",
    "gemma4_assistant": "a draft head for another model, not a standalone model",
    "gemma4_unified_assistant": "a draft head for another model, not a standalone model",
    "git": "its decoder takes the output of an image encoder",
    "hrm_text": "two stacks of layers alternate, which one plan cannot describe",
    "mllama": "which layers attend to the image depends on their position (cross_attention_layers)",
    "moshi": "the model has two decoders, for time and for depth",
    "moss_transcribe_diarize": "its decoder takes the output of an audio encoder",
    "musicgen": "its decoder takes the output of a text encoder",
    "musicgen_melody": "its decoder takes the output of a text encoder",
    "phi4_multimodal": "its layers have adapters for images and audio",
    "xlm": "a layer's tensors are in four lists (attentions, layer_norm1, ffns, layer_norm2)",
    "zamba": _SHARED_BLOCK,
    "zamba2": _SHARED_BLOCK,
}
"""Unsupported model types, with the reason."""

POSITIONAL_KEYS = frozenset(
    {
        "attn_layer_period",
        "cross_attention_layers",
        "expert_layer_period",
        "full_attention_interval",
        "interleave_moe_layer_step",
        "moe_layer_freq",
        "moe_layer_start_index",
        "no_rope_layer_interval",
        "num_kv_shared_layers",
        "sliding_window_pattern",
    }
)
"""Keys by which layers of known types differ, in addition to those in the rows."""
