import json

import pytest
from bench import REPOSITORY, main
from bench_tables import OURS, Device, Run, bench_table, copy_rate, estimated_seconds, ratios, short_table, spread
from checkpoints import differing_tensors, hidden_for, make_base, num_bytes, result_bytes
from copy_methods import METHODS, copy, make_source
from drawing import _apart
from processes import Usage
from startup import LIBRARIES, measure_plan, plan_table

pytestmark = pytest.mark.slow


def run_of(tool, number, seconds, sync_seconds=0.0, cache="warm", size=1_000_000_000, cpu=1.0):
    return Run(tool, size, cache, number, seconds, sync_seconds, cpu, 40_000_000)


RUNS = [
    run_of(OURS, 0, 2.0),
    run_of(OURS, 1, 4.0, cpu=3.0),
    run_of(OURS, 2, 1.0),
    run_of("cp", 0, 1.0, 2.0),
    run_of("cp", 1, 1.0, 7.0),
    run_of("cp", 2, 1.0, 3.0),
]


def test_ratios_are_taken_within_a_round():
    assert ratios(RUNS, "cp", 1_000_000_000, "warm") == (0.5, 0.25, 1.0)
    assert ratios(RUNS, "cp", 1_000_000_000, "warm", durable=True) == (2.0, 1.5, 4.0)


def test_the_start_of_solar_plan_is_compared_within_a_round():
    seconds = {LIBRARIES: (0.1, 0.2, 0.1), "one model": (0.2, 0.2, 0.2), "solar plan": (0.3, 0.4, 0.1)}
    usages = {name: [Usage(9.0, second, 1) for second in values] for name, values in seconds.items()}
    rows = [line.split()[-3:] for line in plan_table(usages).splitlines()[1:]]
    assert rows == [["100", "1.00", "0.50"], ["200", "2.00", "1.00"], ["300", "2.00", "1.50"]]


def test_every_process_of_that_comparison_runs(tmp_path):
    """A process that fails is an error."""
    assert [len(runs) for runs in measure_plan(tmp_path, 1).values()] == [1, 1, 1]


def test_spread():
    assert str(spread([3.0, 1.0, 250.4])) == "3.00 (1.00 to 250)"


def test_table_has_one_row_for_each_tool_of_a_group():
    table = bench_table([*RUNS, run_of("cp", 0, 9.0, cache="cold"), run_of(OURS, 0, 3.0, cache="cold")]).splitlines()
    assert len(table) == 2 + 4
    assert table[2].startswith("| warm | 1.0 GB | solar upscale | 2.00 (1.00 to 4.00) | 1 |")
    assert table[5].startswith("| cold | 1.0 GB | cp | 9.00 (9.00 to 9.00) | 3.00 (3.00 to 3.00) |")


def test_the_short_table_shows_what_was_measured():
    results = json.loads((REPOSITORY / "docs" / "bench.json").read_text())
    assert (
        short_table([Run(**run) for run in results["runs"]])
        in (REPOSITORY / "docs" / "explanation" / "fast-right-safe.md").read_text()
    )


def test_labels_do_not_overlap():
    assert _apart([100.0, 5.0, 99.0], span=10.0) == [100.0, 5.0, 100.0 / 10.0**0.13]


def test_copy_rate_is_of_the_largest_warm_result():
    assert copy_rate([*RUNS, run_of(OURS, 0, 9.0, size=4_000_000_000, cpu=2.0)]) == 2e9


@pytest.mark.parametrize(("rate", "expected"), [(10e9, 21.0), (0.25e9, 42.0)])
def test_the_estimate_is_the_slower_of_cores_and_device(rate, expected):
    assert estimated_seconds(21e9, rate, threads=2, device=Device("", 2e9)) == expected


def test_the_random_base_and_its_upscaled_model_have_the_announced_sizes(tmp_path, run):
    make_base(tmp_path / "base", hidden=64)
    assert run("solar", "upscale", tmp_path / "base", tmp_path / "out", "--drop-layers", 8).returncode == 0
    (path,) = (tmp_path / "out").glob("*.safetensors")
    assert 0 < path.stat().st_size - result_bytes(64) < 100_000
    assert hidden_for(result_bytes(1024)) == 1024
    assert num_bytes({"a": (3, 4), "b": (5,)}) == 34


def test_tensors_that_differ_are_named(tmp_path):
    for name in ("one", "other"):
        make_base(tmp_path / name, hidden=64)
    assert differing_tensors(tmp_path / "one", tmp_path / "one") == []
    assert "lm_head.weight" in differing_tensors(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("name", METHODS)
def test_every_way_to_copy_copies(tmp_path, name):
    make_source(tmp_path / "source", 1_234_567)
    copy(METHODS[name], tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes().endswith((tmp_path / "source").read_bytes())


@pytest.mark.nightly
def test_the_benchmark_runs(tmp_path):
    options = ["--gigabytes", "0.013", "0.03", "--rounds", "2", "--startup-rounds", "0", "--no-mergekit"]
    main([*options, "--folder", str(tmp_path), "--output", str(tmp_path / "docs")])
    results = json.loads((tmp_path / "docs" / "bench.json").read_text())
    assert len(results["runs"]) == 2 * 2 * 2 * 2  # sizes, rounds, tools, caches
    assert all(run["seconds"] > 0 and run["peak_bytes"] > 1_000_000 for run in results["runs"])
    assert "| 400B | 1,200 GB each |" in (tmp_path / "docs" / "bench.md").read_text()
    assert (tmp_path / "docs" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs"]
