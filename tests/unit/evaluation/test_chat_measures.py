import math

import pytest
import torch

from solar_plugins.data.encoder import IGNORED_LABEL, Encoded
from solar_plugins.data.row_encoder import EncodedAnswer, EncodedPair
from solar_plugins.evaluation.measure import PairLogProbs, answers_loss, pair_log_probs


def encoded(prompt, answer):
    return Encoded([*prompt, *answer], [IGNORED_LABEL] * len(prompt) + list(answer))


# More than are judged at once, of many lengths.
ANSWERS = [encoded(range(40, 45 + n), range(100, 102 + n % 5)) for n in range(20)]


def log_probability(model, answer):
    """By hand: the sum over the answer's tokens, one text at a time."""
    logits = model(input_ids=torch.tensor([answer.input_ids])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, token].item() for place, token in enumerate(answer.labels) if token != IGNORED_LABEL)


def test_the_loss_of_answers_is_the_one_that_transformers_trains_on(llama):
    [answer] = ANSWERS[3:4]
    expected = llama(input_ids=torch.tensor([answer.input_ids]), labels=torch.tensor([answer.labels])).loss.item()

    loss = answers_loss(llama, [answer])

    assert loss.tokens == 5
    assert loss.nats_per_token == pytest.approx(expected, rel=1e-5)


def test_answers_keep_their_order_and_are_weighted_by_their_tokens(llama):
    loss = answers_loss(llama, ANSWERS)

    assert loss.window_tokens == tuple(2 + n % 5 for n in range(20))
    assert loss.window_nats == pytest.approx([-log_probability(llama, answer) for answer in ANSWERS], rel=1e-4)
    assert loss.nats_per_token == pytest.approx(sum(loss.window_nats) / sum(loss.window_tokens))


def test_pairs_are_judged_by_the_sums_of_both_answers(llama):
    answers = [EncodedAnswer([], "", "", tokens, len(tokens.input_ids), too_long=False) for tokens in ANSWERS]
    pairs = [EncodedPair(n, answers[n], answers[19 - n]) for n in range(20)]

    judged = pair_log_probs(llama, pairs)

    sums = [log_probability(llama, answer) for answer in ANSWERS]
    assert judged.chosen == pytest.approx(sums, rel=1e-4)
    assert judged.rejected == pytest.approx(sums[::-1], rel=1e-4)
    assert judged.num_preferred == sum(one > other for one, other in zip(sums, sums[::-1], strict=True)) == 10


def test_ties_are_not_preferred():
    assert PairLogProbs((-1.0, -2.0, -3.0), (-2.0, -2.0, -4.0)).num_preferred == 2


def test_a_pair_is_rewarded_if_its_margin_grows():
    reference = PairLogProbs((-5.0, -5.0, -5.0, -5.0), (-3.0, -3.0, -3.0, -3.0))
    # Both answers likelier, both unlikelier, the chosen one unlikelier, and nothing changed.
    model = PairLogProbs((-4.0, -6.0, -6.0, -5.0), (-2.5, -5.0, -3.0, -3.0))

    assert model.num_preferred == 0
    assert model.num_rewarded(reference) == 2


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_model_with_broken_weights_has_log_probabilities_that_are_not_finite(broken):
    assert PairLogProbs((-1.0,), (-2.0,)).is_finite
    assert not PairLogProbs((-1.0, broken), (-2.0, -2.0)).is_finite
