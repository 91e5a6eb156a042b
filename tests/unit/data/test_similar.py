"""Rows that are similar to benchmark texts, with a model whose embeddings are known."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file, save_file
from stand_in_endpoint import KEY, MODEL, stand_in_endpoint
from tiny_embeddings import WORDS, bag_of_words, write_model

from solar_plugins.data import similar as similar_module
from solar_plugins.data.embedders import split
from solar_plugins.data.mixture import make_mixture, make_part
from solar_plugins.data.mixture_args import DEFAULT_JUDGE_THRESHOLD, DEFAULT_THRESHOLD
from solar_plugins.data.mixture_parts import Part
from solar_plugins.data.mixture_report import as_text
from solar_plugins.endpoints import client as client_module
from solar_plugins.errors import SolarError

pytestmark = pytest.mark.slow

QUESTION = "tom has three apples and buys four apples how many apples are there in all"
REPHRASED = "tom owns three apples and purchases four apples in total how many apples are there"
OTHER_THING = "tom has three coins and buys four coins how many coins are there in all"
OTHER = "she counts the coins in the box again he counts them all again she has them"


@pytest.fixture(scope="session")
def embedding_model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("embedding") / "model")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    monkeypatch.setattr(client_module, "FIRST_WAIT", 0.01)
    write_lines("bench.jsonl", [{"q": "how many"}, {"q": QUESTION}])
    return tmp_path


def write_lines(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def save(similar, rows=({"q": REPHRASED}, {"q": OTHER}), against=None, **mixture):
    write_lines("rows.jsonl", rows)
    decontaminate = {"ngram": 13, "against": against or [{"path": "bench.jsonl", "columns": "q"}]}
    if similar is not None:
        decontaminate["similar"] = similar
    content = {"output": "out", "sets": {"a": {"path": "rows.jsonl", "text_columns": ["q"]}}}
    Path("mix.yml").write_text(yaml.safe_dump(content | {"decontaminate": decontaminate} | mixture))
    return Path("mix.yml")


def mixed(similar, rows=({"q": REPHRASED}, {"q": OTHER}), **others):
    report, made = make_mixture(save(similar, rows, **others))
    assert made
    return report


def outputs():
    return {path.name: path.read_bytes() for path in Path("out").iterdir() if path.name != "report.json"}


def test_a_rephrased_row_is_dropped_with_its_neighbor_and_score(folder, embedding_model):
    report = mixed({"model": str(embedding_model), "threshold": 0.9})
    assert lines("out/a.jsonl") == [{"q": OTHER}]
    (record,) = lines("out/dropped.jsonl")
    assert record.pop("score") == 1.0
    assert record == {
        "set": "a", "file": "rows.jsonl", "row": 1, "reason": "similar", "column": "q", "value": REPHRASED,
        "benchmark_file": "bench.jsonl", "benchmark_row": 2, "benchmark_text": QUESTION,
    }  # fmt: skip
    one = report.sets["a"]
    assert (one.dropped["similar"], one.rows_kept, one.not_drawn) == (1, 1, 0)
    assert report.similar["rows_compared"] == 2
    assert report.similar["matches"] == {"bench.jsonl": 1}
    assert report.similar["short_benchmark_texts"] == 1
    text = as_text(report, Path("out"), made=True)
    assert "similar to one" in text
    assert "2 sampled rows" in text
    assert "score 1.0" in text


def test_the_threshold_is_inclusive_and_scores_are_rounded(folder, embedding_model):
    rows = [{"q": OTHER_THING}, {"q": OTHER}]
    mixed({"model": str(embedding_model), "threshold": 0.5}, rows)
    score = lines("out/dropped.jsonl")[0]["score"]
    assert score == round(score, 4) < 0.99
    assert mixed({"model": str(embedding_model), "threshold": score}, rows).sets["a"].dropped["similar"] == 1
    assert mixed({"model": str(embedding_model), "threshold": score + 1e-4}, rows).sets["a"].dropped["similar"] == 0


def test_without_the_key_nothing_is_loaded_and_reports_stay_as_they_were(folder):
    program = "import sys; from solar_plugins.cli import solar; solar(['mix', 'mix.yml'], standalone_mode=False); "
    program += "print([name for name in ('torch', 'transformers', 'numpy', 'openai') if name in sys.modules])"
    save(None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    found = json.loads(Path("out/report.json").read_text())
    assert "similar" not in found
    assert "similar" not in found["sets"]["a"]["dropped"]
    assert "similar" not in found["mixture"]["decontaminate"]
    assert "similar" not in done.stdout


@pytest.mark.parametrize("batch", [1, 64])
def test_batches_windows_and_processes_do_not_change_the_output(folder, embedding_model, monkeypatch, batch):
    words = WORDS.split()
    rows = [{"q": " ".join(words[(at * step) % len(words)] for at in range(3 + step))} for step in range(40)]
    rows[7] = {"q": REPHRASED}
    monkeypatch.setattr(similar_module, "WINDOW_ROWS", 512)
    mixed({"model": str(embedding_model), "threshold": 0.6, "batch": 16}, rows)
    expected = outputs()
    assert b"similar" in expected["dropped.jsonl"]
    monkeypatch.setattr(similar_module, "WINDOW_ROWS", batch)
    monkeypatch.setattr(similar_module, "SCORES_AT_ONCE", batch)
    make_mixture(save({"model": str(embedding_model), "threshold": 0.6, "batch": batch}, rows), processes=2)
    assert outputs() == expected


def test_parts_are_joined_first_and_stay_valid_with_other_options(folder, embedding_model):
    rows = [{"q": REPHRASED}, {"q": OTHER_THING}, {"q": OTHER}]
    mixed({"model": str(embedding_model), "threshold": 0.9}, rows)
    expected = outputs()
    shutil.rmtree("out")
    for threshold in (0.5, 0.9):
        save({"model": str(embedding_model), "threshold": threshold}, rows)
        assert [make_part(Path("mix.yml"), Part(rank, 2))[1] for rank in (0, 1)] == [threshold == 0.5] * 2
    make_mixture(Path("mix.yml"))
    assert outputs() == expected


def test_dropped_rows_are_replaced_and_only_sampled_rows_are_compared(folder, embedding_model):
    """The result is that of a filter over all rows."""
    rows = [{"q": REPHRASED if at % 3 == 0 else f"{OTHER} {at}", "at": at} for at in range(90)]
    similar = {"model": str(embedding_model), "threshold": 0.9}
    sets = {"a": {"path": "rows.jsonl", "text_columns": "q", "rows": 20, "seed": 3}}
    report = mixed(similar, rows, sets=sets)
    one = report.sets["a"]
    assert one.rows_kept == 20
    assert 0 < one.dropped["similar"] < 30
    assert report.similar["rows_compared"] == 20 + one.dropped["similar"]
    assert one.rows_read == sum(one.dropped.values()) + one.not_drawn + one.rows_kept
    kept = Path("out/a.jsonl").read_bytes()
    without = [row if row["at"] % 3 else {"at": row["at"]} for row in rows]  # Dropped by another filter.
    mixed(None, without, sets=sets)
    assert Path("out/a.jsonl").read_bytes() == kept


def test_shares_are_kept(folder, embedding_model):
    write_lines("b.jsonl", [{"q": f"{OTHER} {at}"} for at in range(40)])
    rows = [{"q": REPHRASED if at % 2 else f"{OTHER} {at}"} for at in range(20)]
    sets = {name: {"path": f"{path}.jsonl", "text_columns": "q", "rows": count}
            for name, path, count in (("a", "rows", 20), ("b", "b", 40))}  # fmt: skip
    report = mixed({"model": str(embedding_model), "threshold": 0.9}, rows, sets=sets, keep_shares=True)
    assert {name: one.rows_kept for name, one in report.sets.items()} == {"a": 10, "b": 20}


def test_a_long_text_is_compared_in_pieces(folder, embedding_model):
    """The model's window is 20 tokens; the question starts at word 105, where a piece starts."""
    long = {"q": f"{' '.join(['she counts them again'] * 26)} {REPHRASED}"}
    report = mixed({"model": str(embedding_model), "threshold": 0.9}, [long, {"q": OTHER}])
    assert report.sets["a"].dropped["similar"] == 1


def test_only_the_named_columns_and_messages_are_compared(folder, embedding_model):
    rows = [{"q": OTHER, "r": REPHRASED}, {"q": [{"role": "user", "content": REPHRASED}], "r": OTHER}]
    sets = {"a": {"path": "rows.jsonl", "text_columns": ["q", "r"]}}
    similar = {"model": str(embedding_model), "threshold": 0.9}
    assert mixed(similar | {"columns": "q"}, rows, sets=sets).sets["a"].dropped["similar"] == 1
    assert [one["row"] for one in lines("out/dropped.jsonl")] == [2]
    assert mixed(similar, rows, sets=sets).sets["a"].dropped["similar"] == 2


def test_another_model_in_the_same_folder_builds_again(folder, tmp_path):
    model = write_model(tmp_path / "model")
    save({"model": "model", "threshold": 0.9})
    assert make_mixture(Path("mix.yml"))[1]
    assert not make_mixture(Path("mix.yml"))[1]
    (model / "README.md").write_text("No part of the model.")
    assert not make_mixture(Path("mix.yml"))[1]
    weights = load_file(model / "model.safetensors")
    name = "embeddings.LayerNorm.bias"
    save_file(weights | {name: weights[name] + 1}, model / "model.safetensors", metadata={"format": "pt"})
    assert make_mixture(Path("mix.yml"))[1]


def test_a_model_in_an_installed_package(folder, tmp_path, monkeypatch):
    site = tmp_path / "site"
    write_model(site / "tiny_model" / "model")
    metadata = site / "tiny_model-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    files = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    (metadata / "RECORD").write_text("".join(f"{path},,\n" for path in files))
    monkeypatch.syspath_prepend(site)
    assert mixed({"model": "tiny-model", "threshold": 0.9}).sets["a"].dropped["similar"] == 1


def test_a_model_without_modules_uses_the_mean(folder, tmp_path, caplog):
    write_model(tmp_path / "plain", pooling=None)
    with caplog.at_level("INFO", "axolotl"):
        report = mixed({"model": "plain", "threshold": 0.9})
    assert report.sets["a"].dropped["similar"] == 1
    assert "plain has no modules.json" in caplog.text


@pytest.mark.parametrize("pooling", ["cls_token", "lasttoken"])
def test_other_poolings(folder, tmp_path, pooling):
    """Without layers, the embeddings of these tokens do not depend on the text."""
    write_model(tmp_path / "model", pooling=pooling)
    report = mixed({"model": "model", "threshold": 1.0}, [{"q": OTHER}])
    assert report.sets["a"].dropped["similar"] == 1


def message(similar, **others):
    with pytest.raises(SolarError) as error:
        make_mixture(save(similar, **others))
    assert not Path("out").exists()
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_models_that_cannot_be_used(folder, tmp_path):
    assert "expected either model or endpoint" in message({"threshold": 0.5})
    assert "decontaminate.similar.treshold: unknown key; did you mean threshold?" in message(
        {"model": "m", "treshold": 0.5}
    )
    found = message({"model": "no-such-model"})
    assert "'no-such-model'" in found
    assert "not an installed package" in found
    model = write_model(tmp_path / "model")
    assert "none of r is in text_columns of the dataset a (q)" in message({"model": "model", "columns": "r"})
    write_lines("short.jsonl", [{"q": "how many"}])
    found = message({"model": "model"}, against=[{"path": "short.jsonl", "columns": "q"}])
    assert "none of 1 texts has at least 8 words" in found
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    found = message({"model": "model"})
    assert "weightedmean" in found
    assert "endpoint:" in found
    write_model(tmp_path / "chat", pooling=None, architecture="LlamaForCausalLM")
    found = message({"model": "chat"})
    assert "LlamaForCausalLM" in found
    assert "expected a sentence-embedding model" in found
    (tmp_path / "chat" / "model.safetensors").unlink()
    assert "chat has no *.safetensors" in message({"model": "chat"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights | {"embeddings.LayerNorm.bias": weights["embeddings.LayerNorm.bias"] * float("nan")},
         "is not a number"),
        (lambda weights: {name: weight for name, weight in weights.items() if "LayerNorm" not in name},
         "the weights lack 2 parameters"),
        (None, "cannot be loaded"),
    ],
)  # fmt: skip
def test_damaged_weights(folder, tmp_path, change, expected):
    model = write_model(tmp_path / "model")
    if change is None:
        (model / "model.safetensors").write_bytes(b"1234")
    else:
        weights = change(load_file(model / "model.safetensors"))
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    found = message({"model": "model"})
    assert expected in found
    assert "decontaminate.similar.model" in found


def served(endpoint, **others):
    return {"endpoint": {"base_url": endpoint.url, "model": MODEL, "key_variable": "STAND_IN_KEY", **others}}


def test_an_endpoint_with_embeddings(folder):
    rows = [{"q": REPHRASED}, {"q": OTHER}, {"q": f"{'she counts them ' * 60}{REPHRASED}"}]
    with stand_in_endpoint(embed=bag_of_words) as endpoint:
        report = mixed(served(endpoint, window=100) | {"threshold": 0.9, "batch": 2}, rows)
        assert not make_mixture(Path("mix.yml"))[1]
    assert [one["row"] for one in lines("out/dropped.jsonl")] == [1, 3]
    assert report.similar["model"] == {"base_url": [endpoint.url], "model": MODEL}
    assert max(map(len, endpoint.embedded)) == 2
    assert max(len(text) for texts in endpoint.embedded for text in texts) <= 100
    assert KEY not in Path("out/report.json").read_text()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("count", "something else than embeddings"),
        ("text", "something else than embeddings"),
        ("html", "something else than embeddings"),
        ("dimension", "expected the same number for every text"),
        ("nan", "is not a number"),
        ("400", "HTTP 400"),
        ("413", "lower batch, or endpoint.window"),
        ("500", "HTTP 500"),
    ],
)
def test_an_endpoint_that_answers_nonsense(folder, fault, expected):
    def faulty(number, texts, seed):
        return fault if OTHER in texts else None

    with stand_in_endpoint(embed=bag_of_words, fault=faulty) as endpoint:
        found = message(served(endpoint, retries=1))
    assert expected in found
    assert "decontaminate.similar.endpoint" in found


def test_an_endpoint_without_embeddings_or_key(folder, monkeypatch):
    with stand_in_endpoint() as endpoint:
        found = message(served(endpoint))
        assert "decontaminate.similar.endpoint.base_url" in found
        assert "/v1/embeddings (HTTP 404)" in found
        found = message(served(endpoint, key_variable=None))
        assert "decontaminate.similar.endpoint.key_variable" in found
        assert "HTTP 401" in found
        monkeypatch.delenv("STAND_IN_KEY")
        asked = endpoint.number
        assert "STAND_IN_KEY is not set" in message(served(endpoint))
        assert endpoint.number == asked


def judged(prompt, seed):
    """A judge that knows which texts are the same problem."""
    text = prompt.rsplit("Training text:\n", 1)[1]
    return "**Yes.**" if "purchases" in text else "no" if "coins" in text else "It depends."


def with_judge(folder, endpoint, **others):
    judge = {"base_url": endpoint.url, "model": MODEL, "key_variable": "STAND_IN_KEY", **others}
    return {"model": str(folder), "threshold": 0.5, "judge": judge}


def test_a_judge_decides_and_what_it_does_not_decide_is_dropped(folder, embedding_model):
    unclear = "tom has four apples and buys three apples how many apples are there in all"
    rows = [{"q": REPHRASED}, {"q": OTHER_THING}, {"q": unclear}, {"q": "them again"}]
    with stand_in_endpoint(reply=judged) as endpoint:
        report = mixed(with_judge(embedding_model, endpoint), rows)
        assert endpoint.number == 3
        Path("out/a.jsonl").write_text("")  # The folder is not complete any more.
        make_mixture(Path("mix.yml"))
        assert endpoint.number == 3, "answers are stored"
    assert lines("out/a.jsonl") == [rows[1], rows[3]]
    assert [(one["row"], one["judge"]) for one in lines("out/dropped.jsonl")] == [
        (1, "yes"),
        (3, "undecided: It depends."),
    ]
    assert report.similar["judged"] == {"yes": 1, "no": 1, "undecided": 1}
    assert "1 yes, 1 no, 1 undecided" in as_text(report, Path("out"), made=True)
    everything = b"".join(path.read_bytes() for path in Path("out").iterdir())
    assert KEY.encode() not in everything + Path("out.sqlite").read_bytes()


def test_the_second_neighbor_is_judged_too(folder, embedding_model):
    close = "how many apples are there in total tom owns three apples and purchases four coins"
    write_lines("bench.jsonl", [{"q": close}, {"q": QUESTION}])

    def reply(prompt, seed):
        return "yes" if f"Test problem:\n{close}\n" in prompt else "no"

    with stand_in_endpoint(reply=reply) as endpoint:
        one = mixed(with_judge(embedding_model, endpoint, neighbors=1), [{"q": REPHRASED}, {"q": OTHER}])
        two = mixed(with_judge(embedding_model, endpoint, neighbors=2), [{"q": REPHRASED}, {"q": OTHER}])
    assert (one.sets["a"].dropped["similar"], two.sets["a"].dropped["similar"]) == (0, 1)
    assert lines("out/dropped.jsonl")[0]["benchmark_row"] == 1


@pytest.mark.parametrize(
    ("fault", "said"), [("400", "undecided: the request failed: HTTP 400"), ("cut", "undecided: no")]
)
def test_a_judge_that_fails_on_one_row_leaves_it_undecided(folder, embedding_model, fault, said):
    def faulty(number, prompt, seed):
        return fault if "purchases" in prompt else None

    rows = [{"q": OTHER_THING}, {"q": REPHRASED}]
    with stand_in_endpoint(reply=lambda *_: "no", fault=faulty) as endpoint:
        report = mixed(with_judge(embedding_model, endpoint), rows)
    assert report.similar["judged"] == {"no": 1, "undecided": 1}
    (record,) = lines("out/dropped.jsonl")
    assert record["row"] == 2
    assert record["judge"].startswith(said)


def test_a_judge_that_cannot_be_asked(folder, embedding_model, monkeypatch):
    with stand_in_endpoint(reply=judged) as endpoint:
        assert "decontaminate.similar.judge.model: 'none'" in message(
            with_judge(embedding_model, endpoint, model="none")
        )
        assert "decontaminate.similar.judge.key_variable" in message(
            with_judge(embedding_model, endpoint, key_variable=None)
        )
        Path("other.sqlite").write_text("no database" * 100)
        assert "other.sqlite" in message(with_judge(embedding_model, endpoint, store="other.sqlite"))


@pytest.mark.slow
def test_a_killed_run_asks_only_for_what_is_missing(folder, embedding_model):
    rows = [{"q": f"{REPHRASED} {' '.join(['ada'] * at)}"} for at in range(40)]
    with stand_in_endpoint(reply=judged, latency=0.05) as endpoint:
        save(with_judge(embedding_model, endpoint, concurrency=2), rows)
        command = [sys.executable, "-c", "from solar_plugins.cli import solar; solar()", "mix", "mix.yml"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while endpoint.answered.total() < 6:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        assert not Path("out/report.json").exists()
        make_mixture(Path("mix.yml"))
    assert endpoint.asked.total() >= len(endpoint.asked) > 6
    assert endpoint.asked.total() - len(endpoint.asked) <= 3, "only requests in flight are sent again"
    assert len(lines("out/dropped.jsonl")) + len(lines("out/a.jsonl")) == len(rows)


def test_pieces_have_every_word_of_a_text():
    text = " ".join(f"word{at}" for at in range(200))
    assert " ".join(split(text, 50)) == text
    assert "".join(split("x" * 130, 50)) == "x" * 130


def test_the_documented_rates_and_defaults_are_those_that_were_measured():
    docs = Path(__file__).parents[3] / "docs"
    measured = json.loads((docs / "similar.json").read_text())
    assert (measured["threshold"], measured["threshold_with_judge"]) == (DEFAULT_THRESHOLD, DEFAULT_JUDGE_THRESHOLD)
    page = (docs / "similar.md").read_text()
    for kind, found in measured["second_half"].items():
        cells = [f"{one['found']} of {one['of']} ({one['low']:.0%} to {one['high']:.0%})" for one in found.values()]
        assert f"| {kind} | {' | '.join(cells)} |" in page
    guide = (docs / "guides" / "data-mixtures.md").read_text()
    assert f"is {DEFAULT_THRESHOLD}, or {DEFAULT_JUDGE_THRESHOLD} with a judge" in guide
