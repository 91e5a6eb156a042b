"""The tensors that a decoder needs outside its layers, by model type. Pure data.

transformers would load random weights for a missing one. The tests compare the rows with the models of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

_EMBEDDINGS_AND_NORM = ("embed_tokens", "norm")

_UNLIKE_LLAMA: Mapping[str, str] = {
    "bailing_hybrid": "embed_tokens|word_embeddings norm",
    "deepseek_v4": "embed_tokens|embed norm",
    "falcon_h1 bamba jamba persimmon phi": "embed_tokens final_layernorm",
    "gpt2 gpt_bigcode gpt_neo": "wte wpe ln_f",
    "gptj codegen": "wte ln_f",
    "dbrx mpt": "wte norm_f",
    "olmo nanochat qwen4_exp_text trocr": "embed_tokens",
    "mamba mamba2 falcon_mamba nemotron_h": "embeddings norm_f",
    "lfm2 lfm2_moe": "embed_tokens embedding_norm",
    "gpt_neox gpt_neox_japanese": "embed_in final_layer_norm",
    "ctrl": "w layernorm",
    "openai-gpt": "tokens_embed positions_embed",
    "bloom": "word_embeddings word_embeddings_layernorm ln_f",
    "falcon": "word_embeddings ln_f",
    "opt": "embed_tokens embed_positions",
    "xglm": "embed_tokens layer_norm",
    "biogpt": "embed_tokens embed_positions layer_norm",
    "rwkv": "embeddings ln_out",
    "xlstm": "embeddings out_norm",
    "xlnet": "word_embedding",
    "recurrent_gemma": "embed_tokens final_norm",
    "modernbert-decoder": "embeddings.tok_embeddings final_norm",
}

_ENCODERS = (
    "bert bert-generation big_bird camembert cpmant data2vec-text electra ernie megatron-bert reformer rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
UNCHECKED = frozenset(_ENCODERS.split())
"""Types whose embeddings are not next to the layers, and whose heads have several parts."""

OPTIONAL_EMBEDDINGS: Mapping[str, tuple[str, ...]] = {"trocr": ("embed_positions",)}
"""Trainable embeddings that some configs do not have."""

HEADS: Mapping[str, tuple[str, ...]] = {
    "deepseek_v4": ("lm_head", "head"),
    "gpt_neox": ("lm_head", "embed_out"),
    "gpt_neox_japanese": ("embed_out",),
    "biogpt": ("output_projection",),
    "trocr": ("output_projection",),
    "rwkv": ("head",),
    "xlnet": ("lm_loss",),
    "modernbert-decoder": ("decoder",),
}
"""The names of the language-modeling head if it is not ``lm_head``, including old names."""

_TIED = (
    "biogpt bloom cohere cohere2 cohere2_moe cohere_compass_text ctrl ernie4_5 ernie4_5_moe falcon falcon_mamba gemma "
    "gemma2 gemma3_text gemma4_text gemma4_unified_text got_ocr2 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese "
    "granite_swa jetmoe lfm2 lfm2_moe mamba minicpm3 modernbert-decoder mpt openai-gpt opt recurrent_gemma smollm3 "
    "starcoder2 trocr vaultgemma xglm xlnet youtu zaya"
)
TIED_BY_DEFAULT = frozenset(_TIED.split())
"""Types whose head is the embedding matrix unless the config says otherwise."""


def outer_modules(model_type: str) -> tuple[str, ...]:
    """The modules outside the stack of layers that every model of a type has, such as ``embed_tokens``.

    A module whose name in files may differ from that in the loaded model has all its names, separated by ``|``
    (transformers/conversion_mapping.py).

    Example:
        >>> outer_modules("llama")
        ('embed_tokens', 'norm')
    """
    if model_type in UNCHECKED:
        return ()
    return next(
        (tuple(names.split()) for types, names in _UNLIKE_LLAMA.items() if model_type in types.split()),
        _EMBEDDINGS_AND_NORM,
    )
