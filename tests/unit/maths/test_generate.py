"""`solar maths` from problems to rows, against the stand-in endpoint."""

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter

import pytest
import yaml
from click.testing import CliRunner
from maths_runs import FILES, KINDS, contents, rows, start, write_recipe
from stand_in_endpoint import KEY, MODEL, TEXT_FAULTS, stand_in_endpoint

from solar_plugins.cli import solar
from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.errors import DataError, SolarError
from solar_plugins.maths.checks import Reason
from solar_plugins.maths.generate import make_maths
from solar_plugins.maths.output import as_text

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)


@pytest.fixture
def endpoint():
    with stand_in_endpoint() as one:
        yield one


def test_every_kind_and_the_formatters_read_its_rows(tmp_path, endpoint):
    report, _ = make_maths(write_recipe(tmp_path, endpoint.url))
    assert contents(tmp_path).keys() == FILES
    made = rows(tmp_path)
    assert Counter(row["type"] for row in made) == {kind: one.accepted for kind, one in report.kinds.items()}
    assert report.kinds.keys() == KINDS.keys()
    for row in made:
        asked, answered = sft_formatters()["metamath"].to_messages(row)
        assert (asked["content"], answered["content"]) == (row["query"], row["response"])
        assert row["response"].endswith(f"The answer is: {row['final_answer']}")
        assert row["model"] == MODEL
        assert row["seed"].startswith("problems.jsonl:")
        assert row["prompts"]
    pairs = rows(tmp_path, "preferences.jsonl")
    assert len(pairs) == report.pairs == report.kinds["rephrase"].accepted
    originals = {row["answer"] for row in map(json.loads, (tmp_path / "problems.jsonl").read_text().splitlines())}
    for row in pairs:
        pair = preference_formatters()["math_pairs"].to_pair(row, random.Random(0))
        assert pair.chosen == row["rephrased_answer"]
        assert pair.rejected in originals
    backward = [row for row in made if row["type"] in ("fobar", "self_verification")]
    assert all("value of the unknown x" in row["query"] for row in backward)
    assert {row["checks"]["votes"] for row in made if row["type"] == "solve"} == {"2 of 2"}
    for one in report.kinds.values():
        assert one.tried == one.accepted + sum(one.dropped.values())
    text = as_text(report, tmp_path / "out")
    assert report.files["instructions.jsonl"] in text
    assert yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])["license"] == "cc0-1.0"


def test_the_same_bytes_in_any_order_of_arrival_and_at_another_address(tmp_path, endpoint):
    recipe = write_recipe(tmp_path, endpoint.url)
    make_maths(recipe)
    first, asked = contents(tmp_path), endpoint.asked.total()
    assert max(endpoint.asked.values()) == 1
    make_maths(recipe)
    assert contents(tmp_path) == first
    assert endpoint.asked.total() == asked, "all answers are stored"

    other = tmp_path / "other"
    other.mkdir()
    delays = random.Random(0)
    with stand_in_endpoint(fault=lambda *_: time.sleep(delays.random() / 50)) as slow:
        second = write_recipe(other, slow.url, endpoint={"concurrency": 3}, store=str(other / "answers.db"))
        make_maths(second)
    assert contents(other) == first
    make_maths(second, ask=False)
    assert contents(other) == first


FAULTS = {
    Reason.WRONG: "wrong",
    Reason.REFUSED: "refusal",
    Reason.EMPTY: "empty",
    Reason.CUT: "cut",
    Reason.NEAR: "copy",
    Reason.FAR: "stray",
    Reason.LANGUAGE: "language",
    Reason.TEMPLATE: "template",
    Reason.LEAK: "leak",
    Reason.NUMBERS: "number",
    Reason.NO_ANSWER: "no answer",
    Reason.NO_REASONING: "no reasoning",
}


@pytest.mark.parametrize(("reason", "fault"), [*FAULTS.items(), (Reason.LEAK, "solved")], ids=str)
def test_every_fault_is_dropped_by_its_name(tmp_path, reason, fault):
    of_question = fault in ("copy", "stray", "leak", "solved", "number")
    mark = "Write the same problem" if of_question else "Write the solution"

    def faulty(number, prompt, seed):
        return fault if mark in prompt and "Tom" in prompt else None

    with stand_in_endpoint(fault=faulty) as endpoint:
        report, _ = make_maths(write_recipe(tmp_path, endpoint.url, kinds={"rephrase": {}}))
    dropped = rows(tmp_path, "dropped.jsonl")
    assert {row["reason"] for row in dropped} == {str(reason)}
    assert len(dropped) == report.kinds["rephrase"].dropped[reason] == 2, "problems 1 and 9 are Tom's"
    assert report.accepted == 8
    assert not any("Tom" in row["query"] for row in rows(tmp_path))
    if fault != "empty":
        assert all(row["text"] for row in dropped)


def test_half_of_a_utf16_pair_is_stored_and_dropped(tmp_path):
    with stand_in_endpoint(fault=lambda number, prompt, seed: "half" if "Tom" in prompt else None) as endpoint:
        report, _ = make_maths(write_recipe(tmp_path, endpoint.url, kinds={"solve": {}}))
    assert report.kinds["solve"].dropped == {"breaks the template": 2}


def test_votes(tmp_path):
    def third_is_wrong(number, prompt, seed):
        return "wrong" if seed % 3 == 0 else None

    with stand_in_endpoint(fault=third_is_wrong) as endpoint:
        report, _ = make_maths(write_recipe(tmp_path, endpoint.url, 40, kinds={"solve": {"votes": 4, "agree": 3}}))
    votes = Counter(row["checks"]["votes"] for row in rows(tmp_path))
    assert votes.keys() <= {"3 of 3", "3 of 4"}
    dropped = rows(tmp_path, "dropped.jsonl")
    assert {row["reason"] for row in dropped} == {"too few votes agree"}
    assert len(dropped) + votes.total() == 40
    assert report.kinds["solve"].requests == endpoint.asked.total(), "it stops asking once the result is known"
    assert endpoint.asked.total() < 160


def test_rows_that_are_no_problems_are_counted_and_named(tmp_path, endpoint):
    good = json.loads(write_recipe(tmp_path, endpoint.url, 1).with_name("problems.jsonl").read_text())
    more = [
        {"question": "Without an answer?"},
        {"question": "No final answer?", "answer": "It is five."},
        good,
        {"question": "A mark <|im_end|>?", "answer": "#### 5"},
        {"question": 5, "answer": " "},
    ]
    recipe = write_recipe(tmp_path, endpoint.url, 3, kinds={"solve": {}}, more=more)
    with (tmp_path / "problems.jsonl").open("a") as file:
        file.write("{damaged\n")
    report, _ = make_maths(recipe)
    assert report.seeds_dropped == {
        **{"no text": 2, "solution without a final answer": 1, "duplicate": 1},
        **{"breaks the template": 1, "unreadable": 1},
    }
    assert (report.seeds_read, report.seeds_used) == (9, 3)
    assert [row["seed"] for row in rows(tmp_path, "dropped.jsonl")] == [f"problems.jsonl:{row}" for row in range(4, 10)]


def test_seeds_are_sampled_and_columns_named(tmp_path, endpoint):
    recipe = write_recipe(tmp_path, endpoint.url, 30, kinds={"solve": {}})
    renamed = [
        {"problem": row["question"], "worked": "See the result.", "result": row["answer"].split("#### ")[1]}
        for row in map(json.loads, (tmp_path / "problems.jsonl").read_text().splitlines())
    ]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    content = yaml.safe_load(recipe.read_text())
    content["seeds"] |= {"question": "problem", "answer": "worked", "final_answer": "result", "rows": 12}
    recipe.write_text(yaml.safe_dump(content))
    report, _ = make_maths(recipe)
    assert report.accepted == report.seeds_used == 12
    recipe.write_text(recipe.read_text().replace("final_answer: result", "final_answer: nowhere"))
    with pytest.raises(DataError, match=r"none of 30 rows.*nowhere"):
        make_maths(recipe)


def test_a_seed_file_that_does_not_exist(tmp_path, endpoint):
    recipe = write_recipe(tmp_path, endpoint.url)
    (tmp_path / "problems.jsonl").unlink()
    with pytest.raises(DataError, match=r"problems\.jsonl"):
        make_maths(recipe)


def test_the_output_folder_of_others_is_kept(tmp_path, endpoint):
    recipe = write_recipe(tmp_path, endpoint.url)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"output: .*thesis\.txt"):
        make_maths(recipe)
    with pytest.raises(DataError, match=r"output: .*answers\.db"):
        make_maths(write_recipe(tmp_path, endpoint.url, store=str(tmp_path / "out" / "answers.db")))


@pytest.mark.parametrize(
    ("limits", "options"),
    [
        ({"requests": 12}, {}),
        ({"tokens": 3000}, {}),
        ({"cost": 0.01}, {"price": {"input": 1.0, "output": 20.0}}),
    ],
)
def test_limits_are_kept_and_raised_later(tmp_path, endpoint, limits, options):
    options = {**options, "sampling": {"max_tokens": 100}}
    recipe = write_recipe(tmp_path, endpoint.url, kinds={"solve": {}, "rephrase": {}}, limits=limits, **options)
    report, _ = make_maths(recipe)
    with sqlite3.connect(tmp_path / "out.sqlite") as store:
        requests, tokens, generated = store.execute(
            "SELECT COUNT(*), SUM(prompt_tokens + completion_tokens), SUM(completion_tokens) FROM answers"
        ).fetchone()
    spent = {"requests": requests, "tokens": tokens, "cost": ((tokens - generated) + 20 * generated) / 1e6}
    (name,) = limits
    assert 0.5 * limits[name] < spent[name] <= limits[name]
    assert sum(one.dropped.get("not asked (limit)", 0) for one in report.kinds.values()) > 0
    assert 0 < report.accepted < 20
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "limits": {}}))
    report, _ = make_maths(recipe)
    assert report.accepted == 20
    assert max(endpoint.asked.values()) == 1


def test_no_row_left_is_an_error_with_a_report(tmp_path):
    with stand_in_endpoint(fault=lambda *_: "refusal") as endpoint:
        recipe = write_recipe(tmp_path, endpoint.url, kinds={"solve": {}})
        result = CliRunner().invoke(solar, ["maths", str(recipe)])
    assert result.exit_code == 1
    assert "no row passed" in result.output
    assert contents(tmp_path).keys() == FILES


def test_a_damaged_or_foreign_store_is_kept(tmp_path, endpoint):
    recipe = write_recipe(tmp_path, endpoint.url)
    (tmp_path / "out.sqlite").write_bytes(b"not a database, but somebody's file" * 100)
    with pytest.raises(SolarError, match=r"store: .*out\.sqlite"):
        make_maths(recipe)
    assert (tmp_path / "out.sqlite").read_bytes().startswith(b"not a database")


def killed(recipe, endpoint, count, with_signal):
    """Run until the endpoint has answered that many requests more, then send the signal."""
    process = start(recipe)
    goal, deadline = endpoint.answered.total() + count, time.monotonic() + 60
    while endpoint.answered.total() < goal and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    began = time.monotonic()
    process.send_signal(with_signal)
    said = process.communicate(timeout=30)
    return process.returncode, time.monotonic() - began, "".join(said)


@pytest.mark.parametrize("seed", [5, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(6, 12))])
def test_killed_at_random_moments_no_row_is_lost_and_none_comes_twice(tmp_path, seed):
    whole = tmp_path / "whole"
    whole.mkdir()
    with stand_in_endpoint() as endpoint:
        make_maths(write_recipe(whole, endpoint.url, 25))
        everything = endpoint.asked
    moments, kills = random.Random(seed), 4
    with stand_in_endpoint(latency=0.01) as endpoint:
        recipe = write_recipe(tmp_path, endpoint.url, 25)
        for _ in range(kills):
            killed(recipe, endpoint, moments.randrange(5, 45), signal.SIGKILL)
        process = start(recipe)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert contents(tmp_path) == contents(whole)
    assert endpoint.asked.keys() == everything.keys()
    again = endpoint.asked.total() - everything.total()
    assert again <= kills * 8, "at most the requests under way are sent again"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_within_two_seconds_and_keeps_the_answers(tmp_path, with_signal):
    with stand_in_endpoint(latency=0.3) as endpoint:
        recipe = write_recipe(tmp_path, endpoint.url, 100, endpoint={"concurrency": 32})
        status, seconds, said = killed(recipe, endpoint, 50, with_signal)
    assert status == 130
    assert seconds < 2
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    with sqlite3.connect(tmp_path / "out.sqlite") as store:
        (stored,) = store.execute("SELECT COUNT(*) FROM answers").fetchone()
    assert stored >= endpoint.answered.total() - 32 - 32, "all but those under way"
    assert stored >= 18


def test_the_key_is_nowhere(tmp_path):
    """Not in what a run writes and says, although the endpoint repeats it in its errors."""
    fault = {0: "echo key", 3: "echo key", 5: "500"}

    with stand_in_endpoint(fault=lambda number, prompt, seed: fault.get(number)) as endpoint:
        recipe = write_recipe(tmp_path, endpoint.url)
        process = start(recipe)
        said = "".join(process.communicate(timeout=60))
        assert process.returncode == 0, said
        wrong = start(write_recipe(tmp_path, endpoint.url, sampling={"top_p": 0.5}), key="sk-another-key-123")
        rejected = "".join(wrong.communicate(timeout=60))
    assert KEY not in said
    assert "STAND_IN_KEY" in rejected
    assert "sk-another-key-123" not in rejected
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_two_runs_at_once_do_not_ask_twice(tmp_path):
    with stand_in_endpoint(latency=0.02) as endpoint:
        recipe = write_recipe(tmp_path, endpoint.url, kinds={"solve": {}})
        processes = [start(recipe), start(recipe)]
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert max(endpoint.asked.values()) == 1


def test_all_text_faults_are_tried():
    assert TEXT_FAULTS.keys() == {*FAULTS.values(), "solved", "half", "hard"}
    assert os.environ["STAND_IN_KEY"] == KEY
