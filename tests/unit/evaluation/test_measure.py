import math

import pytest
import torch

from solar_plugins.data.encoder import IGNORED_LABEL, Encoded
from solar_plugins.data.row_encoder import EncodedAnswer, EncodedPair
from solar_plugins.evaluation.measure import (
    PairLogProbs,
    Task,
    answers_loss,
    continuation,
    held_out_loss,
    measure_model,
    pair_log_probs,
    token_windows,
)
from solar_plugins.evaluation.models import load_tokenizer


def test_the_loss_of_one_window_is_the_one_that_transformers_computes(llama):
    window = [0, *range(40, 70)]
    tokens = torch.tensor([window])

    loss = held_out_loss(llama, [window])

    assert loss.nats_per_token == pytest.approx(llama(input_ids=tokens, labels=tokens).loss.item(), rel=1e-5)
    assert loss.tokens == 30


def test_windows_of_different_length_are_weighted_by_their_tokens(llama):
    windows = [list(range(40, 70)), list(range(100, 105)), [7, 8]]
    singly = [held_out_loss(llama, [window]).nats_per_token for window in windows]

    loss = held_out_loss(llama, windows)

    assert loss.tokens == 29 + 4 + 1
    assert loss.nats_per_token == pytest.approx((29 * singly[0] + 4 * singly[1] + 1 * singly[2]) / 34)


def test_a_uniform_model_has_the_loss_log_vocabulary(own_llama):
    with torch.no_grad():
        own_llama.lm_head.weight.zero_()

    loss = held_out_loss(own_llama, [list(range(30))])

    assert loss.nats_per_token == pytest.approx(math.log(320), rel=1e-6)
    assert loss.perplexity == pytest.approx(320, rel=1e-5)


def test_windows_cover_whole_texts_once_and_each_begins_with_bos(tokenizer, texts):
    windows = token_windows(tokenizer, texts, sequence_tokens=16, num_tokens=10**6)

    assert all(window[0] == 0 and 1 < len(window) <= 16 for window in windows)
    together = [token for window in windows for token in window[1:]]
    assert together == [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_a_tokenizer_that_adds_no_bos_gets_none(plain_tokenizer, texts):
    windows = token_windows(plain_tokenizer, texts[:1], sequence_tokens=16, num_tokens=10**6)

    assert [token for window in windows for token in window] == plain_tokenizer(texts[0])["input_ids"]
    assert 0 not in windows[0]


def test_windows_stop_at_the_requested_number_of_tokens(tokenizer, texts):
    windows = token_windows(tokenizer, texts, sequence_tokens=16, num_tokens=31)

    assert [len(window) - 1 for window in windows] == [15, 15, 15]


def test_a_single_token_without_bos_predicts_nothing(plain_tokenizer):
    assert token_windows(plain_tokenizer, ["a"], sequence_tokens=16, num_tokens=100) == []


def greedy_without_cache(model, tokens, count):
    new = []
    for _ in range(count):
        new.append(model(input_ids=torch.tensor([tokens + new]), use_cache=False).logits[0, -1].argmax().item())
    return new


def test_a_continuation_is_greedy(llama, tokenizer):
    tokens = tokenizer("Once upon")["input_ids"]
    expected = greedy_without_cache(llama, tokens, 8)
    assert 1 not in expected  # Else the test would have to stop there.

    assert continuation(llama, tokenizer, "Once upon", 8) == tokenizer.decode(expected, skip_special_tokens=True)


def test_a_continuation_ends_at_eos(own_llama, tokenizer):
    tokens = tokenizer("Once upon")["input_ids"]
    with torch.no_grad():
        first = greedy_without_cache(own_llama, tokens, 1)[0]
        own_llama.lm_head.weight[1] = 2 * own_llama.lm_head.weight[first]  # </s> is now the likeliest token.

    assert continuation(own_llama, tokenizer, "Once upon", 8) == ""


def test_all_metrics_of_a_checkpoint(base_directory, llama, tokenizer, texts):
    windows = token_windows(tokenizer, texts, 32, 100)

    task = Task(windows, ["Once", "The wolf"], load_tokenizer(base_directory), max_new_tokens=4)

    measured = measure_model("base", base_directory, task)

    assert measured.num_layers == 4
    assert measured.num_parameters == sum(weight.numel() for weight in llama.parameters())
    assert measured.loss == held_out_loss(llama, windows)
    assert measured.continuations == tuple(continuation(llama, tokenizer, prompt, 4) for prompt in ("Once", "The wolf"))
    assert measured.seconds > 0
    assert measured.answers is measured.pairs is None


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


def test_the_log_probabilities_of_pairs_are_sums(llama):
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
