"""White space around texts: prompts equal `apply_chat_template`, and answers keep their indentation.

Tokenizers differ in what they join across the line break that ends a prompt, so one of each kind is tested.
"""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from solar_plugins.data.encoder import IGNORED_LABEL, make_encoder
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.data.formatters.base import RowError
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.template import render, template_text

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 splits a text before BPE (its tokenizer.json); Qwen's differs in digits alone. Line breaks stick to the
punctuation before them."""
TEXT = [
    "### User:\nu\n\n### Assistant:\n\n\n    if a:\n        return 1\n\n\t\tx\n### Assistant:\n    b\n  c\n\n d"
] * 50


def byte_level(**options):
    made = Tokenizer(models.BPE())
    split = options.pop("split", None)
    steps = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    return made, pre_tokenizers.ByteLevel.alphabet()


def joined_pieces():
    """SentencePiece with line breaks as pieces, and a space that it puts before every text."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return made, sorted(set("".join(TEXT).replace(" ", "▁")) | set("▁defg"))


KINDS = {
    "GPT-2": byte_level,
    "Llama 3": lambda: byte_level(split=LLAMA_3),
    "no split at all": lambda: byte_level(split=r"[\s\S]+"),
    "line breaks as pieces": joined_pieces,
}


@pytest.fixture(scope="module")
def made_tokenizers():
    from transformers import PreTrainedTokenizerFast

    made = {}
    for name, make in KINDS.items():
        backend, alphabet = make()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>"])
        backend.train_from_iterator(TEXT, trainer)
        made[name] = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return made


ANSWERS = ["a", "    if a:\n        return 1", "\n\n    b\n", "\t\tx", " d", "\n", "c\n\n", "  \n b  "]


@pytest.mark.parametrize("kind", ["mistral", *KINDS])
def test_prompts_equal_those_at_inference_and_answers_are_complete(kind, made_tokenizers, tokenizer):
    tokenizer = tokenizer if kind == "mistral" else made_tokenizers[kind]
    rows = RowEncoder(sft_formatters()["messages"], make_encoder(tokenizer, "test"), 512)
    for answer in ANSWERS:
        for asked in ("u", " u \n", "Complete:\ndef f(a):\n    "):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            row = {"messages": [*turns, *turns]}
            if not answer.strip():
                with pytest.raises(RowError, match="is empty"):
                    rows.conversation(row)
                continue
            for number, encoded in enumerate(rows.conversation(row)):
                ids, labels = encoded.tokens
                prompt = tokenizer.apply_chat_template(
                    row["messages"][: 2 * number + 1],
                    chat_template=template_text(),
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                )
                start = [*rows.encoder.start_ids] if prompt[:1] != [*rows.encoder.start_ids] else []
                masked = [token for token, label in zip(ids, labels, strict=True) if label == IGNORED_LABEL]
                assert masked == start + prompt
                trained_on = [label for label in labels if label != IGNORED_LABEL]
                assert ids == masked + trained_on
                before = tokenizer("a", add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(before + trained_on) == f"a{answer}</s>"


ENDS = [*filter(str.strip, ANSWERS), "a...", "(b)", "x\t\t", "a #", "b\n \n", "c:\n", "12"]


@pytest.mark.parametrize("kind", ["mistral", *KINDS])
def test_the_loss_of_a_conversation_covers_the_tokens_between_its_prefixes(kind, made_tokenizers, tokenizer):
    """By definition an answer is trained on from the end of the prefix before it to the end of the prefix with it."""
    encoder = make_encoder(tokenizer if kind == "mistral" else made_tokenizers[kind], "test")

    def tokens(messages, **options):
        return encoder.tokenizer(render(messages, **options), add_special_tokens=False)["input_ids"]

    chooser = random.Random(0)
    for number in range(300):
        messages = [{"role": "system", "content": chooser.choice(ENDS)}] if number % 3 == 0 else []
        for _ in range(chooser.randint(1, 3)):
            messages.append({"role": "user", "content": chooser.choice(ENDS)})
            messages.append({"role": "assistant", "content": chooser.choice(ENDS), "learn": chooser.random() < 0.8})
        ids, end = tokens(messages), encoder.tokenizer.eos_token_id
        labels = [IGNORED_LABEL] * len(ids)
        for index, message in enumerate(messages):
            if message.get("learn"):
                start = shared(ids, tokens(messages[:index], add_generation_prompt=True))
                stop = shared(ids, tokens(messages[: index + 1]))
                labels[start:stop] = ids[start:stop]
        start = list(encoder.start_ids)
        expected = [IGNORED_LABEL] * len(start) + labels + [end if messages[-1]["learn"] else IGNORED_LABEL]
        assert encoder.encode_conversation(messages) == ([*start, *ids, end], expected)


def shared(ids, other):
    """The length of the common prefix."""
    return next((n for n, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))


@pytest.mark.parametrize("kind", ["mistral", *KINDS])
def test_a_pair_has_the_ids_of_trl_or_is_rejected(kind, made_tokenizers, tokenizer):
    tokenizer = tokenizer if kind == "mistral" else made_tokenizers[kind]
    rows = RowEncoder(preference_formatters()["preference"], make_encoder(tokenizer, "test"), 512)
    refused = set()
    for answer in filter(str.strip, ANSWERS):
        try:
            pair = rows.pair({"prompt": "u", "chosen": answer, "rejected": "other"}, 0)
        except RowError as error:
            refused.add((answer[0].isspace(), "white space" in error.problem))
            continue
        ids, labels = pair.chosen.tokens
        prompt = tokenizer(pair.chosen.prompt)["input_ids"]
        assert ids == tokenizer(pair.chosen.prompt + pair.chosen.completion)["input_ids"]
        assert labels == [IGNORED_LABEL] * len(prompt) + ids[len(prompt) :]
    assert refused == (set() if kind == "mistral" else {(True, True)}), "the others merge line breaks and white space"


def test_code_stays_valid(tokenizer):
    rows = RowEncoder(sft_formatters()["alpaca"], make_encoder(tokenizer, "test"), 512)
    body = "    if a:\n        return 1\n    return 2"
    [answer] = rows.conversation({"instruction": "Complete:\ndef f(a):\n", "output": body})
    assert answer.prompt == "### User:\nComplete:\ndef f(a):\n\n\n### Assistant:\n"
    trained_on = tokenizer.decode(
        tokenizer("\n")["input_ids"] + [label for label in answer.tokens.labels if label >= 0]
    )
    compile("def f(a):\n" + trained_on.partition("\n")[2].removesuffix("</s>"), "trained_on", "exec")
