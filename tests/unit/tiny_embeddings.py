"""A sentence-embedding model without layers: the embedding of a text is the mean of its words' vectors."""

import json

WORDS = "tom ada has buys three four apples coins how many are there in all the box he she counts them again"
SYNONYMS = {"purchases": "buys", "owns": "has", "total": "all"}
"""Words with the vector of another one."""


def write_model(folder, pooling="mean_tokens", architecture="BertModel", window=20):
    """The folder of the model, with files of sentence-transformers unless ``pooling`` is None."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = WORDS.split()
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *SYNONYMS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=0, num_attention_heads=1,
        intermediate_size=4, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(1)
    model = BertModel(config)
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
        model.embeddings.token_type_embeddings.weight.zero_()
        vectors = model.embeddings.word_embeddings.weight
        vectors.normal_()
        for word, same in SYNONYMS.items():
            vectors[vocabulary[word]] = vectors[vocabulary[same]]
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": [architecture]}))
    if pooling:
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        (folder / "modules.json").write_text(
            json.dumps([{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in modules])
        )
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": window}))
        (folder / "1_Pooling").mkdir()
        modes = {f"pooling_mode_{one}": one == pooling for one in ("cls_token", "mean_tokens", "lasttoken")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


def bag_of_words(text):
    """An embedding for the stand-in endpoint: how often each word occurs."""
    words = [SYNONYMS.get(word, word) for word in text.lower().split()]
    return [words.count(known) + 0.01 for known in WORDS.split()]
