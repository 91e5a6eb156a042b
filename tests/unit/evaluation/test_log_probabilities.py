import math
import random

import pytest

from solar_plugins.data.encoder import Encoded
from solar_plugins.data.template import Example
from solar_plugins.evaluation.log_probabilities import AnswerScore, answer_scores, batches
from solar_plugins.evaluation.models import load_model

EXAMPLES = [
    Example("### User:\nTwo and two?\n\n### Assistant:\n", "Four."),
    Example("### User:\nName a long river, and say where it ends.\n\n### Assistant:\n", "The Nile; in the sea. " * 6),
    Example("### User:\nHi\n\n### Assistant:\n", "x"),
    Example("### System:\nBe short.\n\n### User:\nWho?\n\n### Assistant:\n", "It was me, and nobody else was there."),
]


@pytest.fixture(scope="module")
def model(tiny_chat_model):
    return load_model(tiny_chat_model)


def direct(model, prompt_ids, answer_ids):
    """log p of an answer by the definition: one pass for each token, softmax in float64."""
    import torch

    total = 0.0
    for place, token in enumerate(answer_ids):
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + answer_ids[:place]])).logits[0, -1].double()
        total += (logits[token] - torch.logsumexp(logits, 0)).item()
    return total


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_log_probabilities_are_those_of_the_definition(model, encoder, batch_tokens):
    """The prompt's ids come from the tokenizer alone, not from our labels. Tolerance: float32 sums of 60 tokens."""
    encoded = [encoder.encode(example) for example in EXAMPLES]
    scores = answer_scores(model, encoded, batch_tokens)
    for example, (ids, _), score in zip(EXAMPLES, encoded, scores, strict=True):
        prompt_ids = [1, *encoder.tokenizer(example.prompt, add_special_tokens=False)["input_ids"]]
        assert ids[: len(prompt_ids)] == prompt_ids
        assert ids[-1] == encoder.tokenizer.eos_token_id == 2, "the end of the answer is judged too"
        assert score.tokens == len(ids) - len(prompt_ids)
        assert score.total == pytest.approx(direct(model, prompt_ids, ids[len(prompt_ids) :]), rel=1e-5, abs=1e-4)
        assert score.per_token == score.total / score.tokens
    assert len({round(score.total, 2) for score in scores}) == len(EXAMPLES), "four different answers"


def test_a_uniform_model(model):
    """With a head of zeros each of the 32,000 tokens is as likely as the others."""
    import torch

    head = model.lm_head.weight.data.clone()
    model.lm_head.weight.data.zero_()
    try:
        [score] = answer_scores(model, [Encoded([1, 5, 6, 7, 2], [-100, -100, 6, 7, 2])], 100)
    finally:
        model.lm_head.weight.data = head
    assert score.tokens == 3
    assert score.total == pytest.approx(-3 * math.log(32000), rel=1e-6)
    assert torch.equal(model.lm_head.weight.data, head)


def test_the_mean_of_an_answer():
    assert AnswerScore(-6.0, 3).per_token == -2.0


def test_batches_contain_every_text_once_within_the_limit():
    lengths = [random.Random(1).randint(1, 50) for _ in range(200)]
    found = list(batches(lengths, 60))
    assert sorted(place for batch in found for place in batch) == list(range(200))
    assert all(len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= 60 for batch in found)
    assert list(batches([70], 60)) == [[0]], "what is longer goes alone"
    assert list(batches([], 60)) == []
