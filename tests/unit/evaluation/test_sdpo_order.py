import json
import math

import pytest
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.row_tally import RowTally
from solar_plugins.data.template import Example
from solar_plugins.errors import CheckpointError, DataError
from solar_plugins.evaluation.log_probabilities import AnswerScore, answer_scores
from solar_plugins.evaluation.models import load_model
from solar_plugins.evaluation.sdpo_order import PreferenceFile, SetShare, order_sets

pytestmark = pytest.mark.slow  # Each loads models and measures them.

ANSWERS = ["Yes.", "No.", "Perhaps.", "Never, I think.", "It depends on the weather.", "Ask somebody else."]
LIMITS = {"max_length": 128, "batch_tokens": 512}


@pytest.fixture(scope="module")
def ranked(tiny_chat_model, encoder):
    """For each of 12 prompts the answers, the likeliest first, by a pass for each answer alone."""
    model = load_model(tiny_chat_model)
    prompts = [f"Is {i} a good number?" for i in range(12)]
    found = {}
    for prompt in prompts:
        rendered = f"### User:\n{prompt}\n\n### Assistant:\n"
        scores = {
            answer: answer_scores(model, [encoder.encode(Example(rendered, answer))], 1)[0].total for answer in ANSWERS
        }
        found[prompt] = sorted(ANSWERS, key=lambda answer: -scores[answer])
    return found


def made_set(path, ranked, num_easy):
    """The first pairs agree with the model, the others do not."""
    rows = []
    for place, (prompt, answers) in enumerate(ranked.items()):
        best, worst = answers[0], answers[-1]
        chosen, rejected = (best, worst) if place < num_easy else (worst, best)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_synthetic_datasets_are_ordered_from_easy_to_hard(tiny_chat_model, ranked, tmp_path):
    files = [made_set(tmp_path / f"{n}.jsonl", ranked, n) for n in (3, 12, 0, 9)]
    ordered = order_sets(tiny_chat_model, files, **LIMITS)
    assert [one.file.path.name for one in ordered.sets] == ["12.jsonl", "9.jsonl", "3.jsonl", "0.jsonl"]
    assert [one.share for one in ordered.sets] == [1.0, 0.75, 0.25, 0.0]
    assert [(one.pairs, one.ties, one.tally.cut) for one in ordered.sets] == [(12, 0, 0)] * 4
    assert (ordered.device, ordered.dtype, ordered.own_template) == ("cpu", "float32", False)


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_batches_do_not_change_the_shares(tiny_chat_model, ranked, tmp_path, batch_tokens):
    path = made_set(tmp_path / "set.jsonl", ranked, 7)
    [one] = order_sets(tiny_chat_model, [path], max_length=128, batch_tokens=batch_tokens).sets
    assert one.preferred == 7


def test_ties_keep_the_given_order(tiny_chat_model, ranked, tmp_path):
    files = [made_set(tmp_path / f"{name}.jsonl", ranked, 6) for name in "bac"]
    assert [one.file.path for one in order_sets(tiny_chat_model, files, **LIMITS).sets] == files


def judged(pairs, preferred=0):
    return SetShare(
        PreferenceFile("f", preference_formatters()["preference"], pairs),
        RowTally("f", "preference", examples=pairs),
        preferred,
    )


def test_sum_and_mean_may_disagree_and_the_sum_decides():
    """A short answer of improbable tokens against a long one of probable ones: DPO's sum prefers the short one."""
    share = judged(pairs=1)
    share.add(AnswerScore(-6.0, 2), AnswerScore(-10.0, 10))
    assert (share.preferred, share.preferred_per_token, share.ties) == (1, 0, 0)


def test_ties_are_counted_and_are_not_preferred(tiny_chat_model, tmp_path):
    """Cut at the same place, both answers are the same tokens; the end that differs is gone."""
    start = "The answer is long. " * 20
    rows = [{"prompt": "Why?", "chosen": f"{start}yes", "rejected": f"{start}no"}] * 4
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [one] = order_sets(tiny_chat_model, [path], max_length=40, batch_tokens=45).sets
    assert (one.pairs, one.ties, one.preferred, one.preferred_per_token, one.tally.cut) == (4, 4, 0, 0, 4)


def test_the_standard_error_is_that_of_agresti_and_coull():
    """Two successes and two failures more: 82 of 104; and 5 of 7, where the plain formula has no error."""
    few = judged(pairs=3, preferred=3)
    assert few.standard_error == pytest.approx(math.sqrt(5 / 7 * 2 / 7 / 7))
    share = judged(pairs=100, preferred=80)
    assert share.standard_error == pytest.approx(math.sqrt(82 / 104 * 22 / 104 / 104))


def test_the_limit_is_a_reproducible_sample(tiny_chat_model, ranked, tmp_path):
    path = made_set(tmp_path / "set.jsonl", ranked, 6)
    first, again = (order_sets(tiny_chat_model, [path], limit=5, seed=1, **LIMITS).sets[0] for _ in range(2))
    assert (first.pairs, first.tally.rows_read, first.file.num_rows) == (5, 5, 12)
    assert first.preferred == again.preferred


def test_the_output_of_the_command(tiny_chat_model, ranked, tmp_path):
    easy, hard = (made_set(tmp_path / f"{n}.jsonl", ranked, n) for n in (12, 6))
    with hard.open("a") as file:
        file.write('{"prompt": "Why?", "chosen": "", "rejected": "No."}\n')
    command = ["sdpo-order", str(tiny_chat_model), str(hard), str(easy), "--max-length", "128"]
    refused = CliRunner().invoke(solar, command)
    assert refused.exit_code == 1
    assert "1 of 13 rows cannot be read as preference (1 chosen is empty (row 13))" in refused.stderr
    shown = CliRunner().invoke(solar, [*command, "--max-bad-share", "0.1"], catch_exceptions=False)
    lines = shown.stdout.splitlines()
    assert lines[0].split("  ")[0] == "easy to hard"
    assert lines[2].startswith(f"1. {easy}  ")
    assert "100.0 % ± 8.3" in lines[2]
    assert lines[3].startswith(f"2. {hard}  ")
    assert "50.0 % ± 12.5" in lines[3]
    assert f"{hard}: read as preference, 13 of 13 rows" in lines
    assert "  bad rows: 1 chosen is empty (row 13)" in lines
    assert "tokenizer has another one" in shown.stdout
    assert "differ by less than" not in shown.stdout

    content = json.loads(CliRunner().invoke(solar, [*command, "--max-bad-share", "0.1", "--json"]).stdout)
    assert [one["share_preferred"] for one in content["easy_to_hard"]] == [1.0, 0.5]
    assert content["easy_to_hard"][1]["bad_rows"] == [{"row": 13, "problem": "chosen is empty"}]


def test_shares_that_do_not_differ_are_reported(tiny_chat_model, ranked, tmp_path):
    a, b = (made_set(tmp_path / f"{n}.jsonl", ranked, n) for n in (6, 7))
    shown = CliRunner().invoke(solar, ["sdpo-order", str(tiny_chat_model), str(a), str(b), "--max-length", "128"])
    assert f"{b} and {a} differ by less than two standard errors" in shown.stdout


def test_sdpo_order_errors(tiny_chat_model, ranked, tmp_path):
    path = made_set(tmp_path / "set.jsonl", ranked, 6)
    with pytest.raises(CheckpointError, match=r"nowhere: .*no config.json; expected the folder"):
        order_sets(tmp_path / "nowhere", [path])
    with pytest.raises(CheckpointError, match=r"--max-length: 1024; .* has 256 positions"):
        order_sets(tiny_chat_model, [path])
    with pytest.raises(DataError, match=r"set.jsonl: given twice"):
        order_sets(tiny_chat_model, [path, path.parent / "." / ".." / path.parent.name / path.name])
    with pytest.raises(DataError, match=r"none of 12 rows is left: 12 have a prompt that fills --max-length"):
        order_sets(tiny_chat_model, [path], max_length=4)
    with pytest.raises(DataError, match=r"missing.jsonl: cannot be read"):
        order_sets(tiny_chat_model, [tmp_path / "missing.jsonl"])


def test_a_model_with_broken_weights_is_an_error(tiny_chat_model, ranked, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_chat_model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], math.nan)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"set.jsonl: row \d+: the log-probability is not finite"):
        order_sets(broken, [made_set(tmp_path / "set.jsonl", ranked, 6)], **LIMITS)
