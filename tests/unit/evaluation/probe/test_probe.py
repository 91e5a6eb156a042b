"""`solar probe` as a user runs it, on a tiny model."""

import json
import random

import pytest
import yaml
from click.testing import CliRunner
from trained_models import tiny_llama

from solar_plugins.cli import solar
from solar_plugins.evaluation.loss import Loss
from solar_plugins.evaluation.probe import probe as probe_module
from solar_plugins.evaluation.probe.candidates import read_candidates
from solar_plugins.evaluation.probe.probe import FIRST_CAP, LAST_CAP, still_racing
from solar_plugins.report.probe import short_name
from solar_plugins.solar_block import parse_solar_block
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.strategies import plan_of

pytestmark = pytest.mark.slow

LAYERS = 6


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A base with a tokenizer, and two files of texts."""
    made = tmp_path_factory.mktemp("probe")
    tiny_llama(LAYERS).save_pretrained(made / "base")
    tokenizer.save_pretrained(made / "base")
    for name, words in (("news", "one two three four"), ("code", "x = 1 ; y = x")):
        rows = [{"text": f"{words} {number} " * (4 + number)} for number in range(9)]
        (made / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return made


def run(folder, *arguments, out="out", status=0):
    texts = ["--text", str(folder / "news.jsonl")]
    result = CliRunner().invoke(
        solar,
        ["probe", str(folder / "base"), *texts, "--output", str(folder / out), "--sequence-len", "40", *arguments],
    )
    assert result.exit_code == status, result.output
    return result


def test_every_repeat(folder):
    result = run(folder, "--target-layers", "10", "--text", str(folder / "code.jsonl"))
    found = json.loads((folder / "out" / "probe.json").read_text())
    assert {"base_loss", "plans"} <= found.keys()
    assert [(plan["start"], plan["end"]) for plan in found["plans"]] == [
        (i, j) for i in range(LAYERS) for j in range(i + 1, LAYERS + 1)
    ]
    for plan in found["plans"]:
        assert plan["added_layers"] == plan["end"] - plan["start"]
        assert plan["loss"] == pytest.approx(plan["delta"] + found["base_loss"], abs=0.5)
        assert plan["tokens"] > 0
        assert len(plan["delta_by_text"]) == 2
    block = yaml.safe_load(result.output[result.output.index("solar:\n") :])
    (best,) = [one["best"] for one in found["sizes"] if one["added_layers"] == 4]
    assert f"# {best}" in result.output
    assert str(plan_of(parse_solar_block(block).init, LAYERS)) == best, "the block makes that very plan"
    assert "ranks seams" in result.output
    page = (folder / "out" / "probe.html").read_text()
    assert page.count('<g id="cell-') == page.count("nats per token above the base\n") == 21
    assert "://" not in page
    assert (folder / "out" / "probe.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_interrupted_probe_resumes(folder, monkeypatch):
    first = json.loads(run(folder, "--json", out="again").stdout)
    record = folder / "again" / "measured.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:4]) + lines[4][:50])  # killed while it wrote the fifth
    measured = []
    monkeypatch.setattr(
        probe_module.LayerReplay,
        "document_nats",
        counted(probe_module.LayerReplay.document_nats, measured),
    )
    again = json.loads(run(folder, "--json", out="again").stdout)
    for one in (first, again):
        del one["seconds"], one["layer_passes"]
    assert again == first
    partly = len(measured)
    measured.clear()
    run(folder, "--json", out="again")
    assert measured == []
    assert partly > 0
    run(folder, "--json", "--sequence-len", "20", out="again")
    assert measured, "other settings are measured again"


def counted(function, calls):
    def counting(self, recording, states):
        calls.append(len(states))
        return function(self, recording, states)

    return counting


@pytest.mark.slow
def test_memory_does_not_change_the_losses(folder):
    wide = json.loads(run(folder, "--json", out="wide").stdout)
    narrow = json.loads(run(folder, "--json", "--memory", "0.01", out="narrow").stdout)
    assert [plan["loss"] for plan in narrow["plans"]] == pytest.approx(
        [plan["loss"] for plan in wide["plans"]], abs=1e-5
    )


def test_plans_of_a_file(folder):
    plans = folder / "plans.yml"
    plans.write_text("- {strategy: dus, drop_layers: 2}\n- {strategy: block_expansion, new_layers: 2}\n")
    found = json.loads(run(folder, "--plans", str(plans), "--json", out="file").stdout)
    dus, expanded = found["plans"]
    assert (dus["start"], dus["end"]) == (2, 4)
    assert expanded["delta"] == 0.0
    assert expanded["init"] == {"strategy": "block_expansion", "new_layers": 2}
    assert expanded["added_layers"] == 2


def test_plans_with_other_initializers(folder):
    plans = folder / "starts.yml"
    starts = ["scaled", "noise", "average", "identity", "{initializer: scaled, factor: 0.25}"]
    plans.write_text("".join(f"- {{strategy: dus, drop_layers: 2, duplicates: {one}}}\n" for one in ["copy", *starts]))
    result = run(folder, "--plans", str(plans), "--target-layers", "8", out="starts")
    found = json.loads((folder / "starts" / "probe.json").read_text())["plans"]
    assert len({round(plan["delta"], 6) for plan in found}) == len(found), "each starts otherwise"
    assert found[-1]["init"]["duplicates"] == {"initializer": "scaled", "factor": 0.25}
    assert found[-1]["plan"] == "6 -> 8 layers: [0..3] + [2..3] as scaled (factor 0.25) + [4..5]"
    block = yaml.safe_load(result.output[result.output.index("solar:\n") :])
    best = min(found, key=lambda plan: plan["loss"])["plan"]
    assert str(plan_of(parse_solar_block(block).init, LAYERS)) == best, "the block makes that very plan"
    (last,) = [one for one in read_candidates(plans, LAYERS) if "0.25" in str(one.plan)]
    assert short_name(last) == "dus duplicates={initializer: scaled, factor: 0.25} drop_layers=2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target-layers", "13"], "--target-layers: 13 is not the depth of any plan here; expected one of 7, 8"),
        (["--text", "{folder}/nowhere.jsonl"], "nowhere.jsonl: cannot be read (No such file"),
        (["--text", "{folder}/few.jsonl"], "few.jsonl: 2 texts of 2 tokens or more; expected at least 3"),
        (["--plans", "{folder}/nowhere.yml"], "nowhere.yml: cannot be read"),
    ],
)
def test_probe_errors(folder, arguments, words):
    (folder / "few.jsonl").write_text('{"text": "one two"}\n{"text": "three four"}\n')
    result = run(folder, *(one.format(folder=folder) for one in arguments), out="bad", status=1)
    assert words in result.output
    assert "Traceback" not in result.output


def test_the_fingerprint_depends_on_the_settings(folder):
    base = find_base(str(folder / "base"))
    candidates = probe_module_candidates(base)
    texts = [folder / "news.jsonl"]
    one = probe_module.Probe(base, candidates, texts, settings())
    assert one.fingerprint == probe_module.Probe(base, candidates, texts, settings()).fingerprint
    assert one.fingerprint != probe_module.Probe(base, candidates[:3], texts, settings()).fingerprint
    assert one.fingerprint != probe_module.Probe(base, candidates, texts, settings(dtype="bfloat16")).fingerprint
    assert one.fingerprint != probe_module.Probe(base, candidates, texts, settings(limit_tokens=100)).fingerprint


def probe_module_candidates(base):
    from solar_plugins.evaluation.probe.candidates import every_repeat

    return every_repeat(base.num_layers)


def settings(**changes):
    return probe_module.Settings(
        **({"sequence_len": 40, "limit_tokens": None, "memory_bytes": 10**9, "dtype": "float32"} | changes)
    )


def noisy(rng, excess, noise, windows=40, text=2.0):
    """A loss that is ``excess`` above the text's own, which all plans share."""
    rng.seed(7)
    shared = [32 * (text + rng.gauss(0, 0.5)) for _ in range(windows)]
    rng.seed(hash(excess))
    return Loss(tuple(nats + 32 * (excess + rng.gauss(0, noise)) for nats in shared), (32,) * windows)


def test_a_significantly_worse_plan_is_dropped():
    """The texts differ much more than the plans, which are compared on the same texts."""
    rng = random.Random()
    losses = {0: noisy(rng, 0.10, 0.05), 1: noisy(rng, 0.11, 0.05), 2: noisy(rng, 0.30, 0.05)}
    assert still_racing(losses, [[0, 1, 2]], frozenset(), 0) == {0, 1}


def test_sizes_do_not_compete_and_kept_plans_stay():
    rng = random.Random()
    losses = {0: noisy(rng, 0.1, 0.01), 1: noisy(rng, 0.5, 0.01), 2: noisy(rng, 0.9, 0.01)}
    assert still_racing(losses, [[0], [1, 2]], frozenset({2}), 0) == {0, 1, 2}
    assert still_racing(losses, [[0], [1, 2]], frozenset(), 0) == {0, 1}


def test_of_equal_plans_fewer_stay_each_round():
    losses = {place: Loss((32.0 + place / 1e6, 64.0), (32, 32)) for place in range(40)}
    counts = [len(still_racing(losses, [range(40)], frozenset(), turn)) for turn in range(6)]
    assert counts == [FIRST_CAP, 12, 6, 3, LAST_CAP, LAST_CAP]
    assert still_racing(losses, [range(40)], frozenset(), 5) == {0, 1}


@pytest.mark.parametrize("segments", [1, 2, 7])
def test_with_few_segments_no_plan_is_dropped(segments):
    losses = {0: Loss((32.0,) * segments, (32,) * segments), 1: Loss((320.0,) * segments, (32,) * segments)}
    assert still_racing(losses, [[0, 1]], frozenset(), 0) == {0, 1}
