"""The GPU check without a GPU: its recipes by Axolotl's schema, resuming, and its steps at tiny size."""

import json
import lzma
import shutil
from types import SimpleNamespace

import gpu_check
import gpu_steps
import pytest
from gpu_curves import curve
from gpu_pack import EXTRAS, Parts, package_files, required
from gpu_random_base import MISTRAL_7B, OUTER
from gpu_recovery import ORDER
from gpu_runs import Check, Clock, OutOfTimeError, Results, train
from gpu_settings import CACHE, GPU, RECOVERY_CACHE, TINY, adapter_recipe, small_recipe
from gpu_steps import LORA, QLORA, STEPS, as_trained, memory_setups


def test_the_expected_sums_are_those_of_the_paper():
    """SOLAR 10.7B: layers 0 to 23, then 8 to 31 (arXiv:2312.15166, sec. 2.1)."""
    from gpu_load_check import expected_sums, wrong_groups

    sums = expected_sums({OUTER: -1} | {str(layer): layer for layer in range(32)}, 8)
    assert [sums[str(layer)] for layer in range(48)] == [*range(24), *range(8, 32)]
    assert wrong_groups(sums, sums | {"30": 0, "48": 1}) == ["30", "48"]


def test_the_random_base_has_the_size_of_mistral_7b():
    """7,241,732,096 parameters: the index of mistralai/Mistral-7B-v0.1 says 14,483,464,192 bytes in bfloat16."""
    from math import prod

    from solar_plugins.upscaling.decoder import Decoder
    from solar_plugins.upscaling.estimates import shapes_from_config

    assert 2 * sum(map(prod, shapes_from_config(Decoder.of(MISTRAL_7B), 32).values())) == 14_483_464_192


def full_size_recipes(folder):
    yield adapter_recipe(GPU, QLORA)
    yield from (recipe for _, recipe in memory_setups(GPU, folder))
    for grown in (False, True):
        yield small_recipe(GPU, folder, grown=grown, max_steps=3, **GPU.exact_numbers)


def test_axolotl_accepts_the_recipes_of_the_full_size_and_drops_none_of_their_keys(tmp_path):
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().register("solar_plugins.SolarPlugin")
    gpu = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}
    for recipe in full_size_recipes(tmp_path):
        known = validate_config(DictDefault(recipe), capabilities=gpu, env_capabilities={"torch_version": "2.14.1"})
        assert recipe.keys() <= known.to_dict().keys()


def test_base_and_up_scaled_model_differ_by_the_plugin_alone(tmp_path):
    base, upscaled = (small_recipe(GPU, tmp_path, grown=grown) for grown in (False, True))
    assert {key for key in upscaled if base.get(key) != upscaled[key]} == {"plugins", "solar"}
    assert not base.keys() - upscaled.keys()


def test_the_estimate_does_not_grow_a_grown_checkpoint(tmp_path):
    assert "solar" not in as_trained(adapter_recipe(GPU, LORA))
    assert "solar" in as_trained(small_recipe(GPU, tmp_path, grown=True))


def test_packed_parts_are_one_file_and_hold_the_packages_that_training_imports(tmp_path):
    data = bytes(range(256)) * 40
    with lzma.open(Parts(tmp_path, "some", 100), "wb") as file:
        file.write(data)
    parts = sorted(tmp_path.iterdir())
    assert {path.stat().st_size for path in parts[:-1]} == {100}
    assert lzma.decompress(b"".join(path.read_bytes() for path in parts)) == data
    names = required("solar_plugins", EXTRAS)
    assert names >= {"axolotl", "transformers", "peft", "datasets", "aiohttp", "bitsandbytes", "gguf", "solar-plugins"}
    assert not names & {"torch", "oci", "nvidia-cublas-cu13"}
    assert "aiohttp" not in required("solar_plugins", EXTRAS, frozenset({"aiohttp"}))
    packed = {str(place) for _, place in package_files(["bitsandbytes", "mistral-common"])}
    assert {"bitsandbytes/__init__.py", "bitsandbytes/libbitsandbytes_cuda130.so"} <= packed
    assert "mistral_common/data/tokenizer.model.v1" in packed
    assert not [name for name in packed if "cuda12" in name or "tekken_" in name]


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_without_a_gpu_it_refuses_and_writes_nothing(no_gpu, tmp_path, capsys):
    assert gpu_check.main(["--output", str(tmp_path / "out"), "--folder", str(tmp_path / "work")]) == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_data_it_says_which_command_brings_them(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert gpu_check.main(["--output", str(tmp_path), "--folder", str(tmp_path / "work")]) == 1
    assert "make gpu-check-data" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--tiny"], ["sleep", "--tiny", "--output", "out"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main(arguments)
    assert stopped.value.code == 2


def test_weights_in_fp32_are_trained_in_mixed_precision():
    from gpu_metrics import MetricsPlugin

    arguments = [MetricsPlugin().get_training_args(SimpleNamespace(bf16=bf16, fp16=False)) for bf16 in (False, True)]
    assert ["bf16" in found for found in arguments] == [True, False]


def test_the_peak_of_training_is_that_of_all_steps(monkeypatch):
    """Axolotl resets torch's counter between them."""
    import gpu_metrics

    recorder = object.__new__(gpu_metrics.Recorder)
    recorder.metrics = {}
    for allocated, reserved in ((5, 9), (7, 8), (2, 3)):
        peak = {"allocated": allocated, "reserved": reserved}
        monkeypatch.setattr(gpu_metrics, "peak_memory", lambda peak=peak: peak)
        recorder._note_peak()
    assert recorder.metrics["train_peak"] == {"allocated": 7, "reserved": 9}


@pytest.fixture
def made_steps(monkeypatch):
    """Steps that measure nothing: each run adds its name to the list; those in `broken` fail."""
    seen = SimpleNamespace(names=[], broken=set(), late=set())

    def step(check):
        for name in ("one", "two"):
            gpu_check_attempt(check, name)

    def gpu_check_attempt(check, name):
        from gpu_runs import attempt

        def measure():
            seen.names.append(name)
            if name in seen.late:
                raise OutOfTimeError
            if name in seen.broken:
                raise RuntimeError("no")
            return {"device": "made up"}

        attempt(check, name, measure)

    monkeypatch.setitem(gpu_check.STEPS, "upscale", step)
    monkeypatch.setattr(gpu_check, "write_report", lambda output: output / "upscale.json")
    return seen


def check_made(tmp_path, *more):
    return gpu_check.main(
        ["upscale", "--tiny", "--folder", str(tmp_path / "w"), "--output", str(tmp_path / "o"), *more]
    )


def test_known_runs_are_not_measured_again_and_failed_ones_are(made_steps, tmp_path):
    made_steps.broken = {"two"}
    assert check_made(tmp_path) == 1
    content = json.loads((tmp_path / "o" / "upscale.json").read_text())
    assert (content["finished"], list(content["runs"]), content["failures"]) == (False, ["one"], {"two": "no"})
    made_steps.broken = set()
    assert check_made(tmp_path) == 0
    assert check_made(tmp_path) == 0
    assert made_steps.names == ["one", "two", "two"]
    assert json.loads((tmp_path / "o" / "upscale.json").read_text())["failures"] == {}
    assert check_made(tmp_path, "--again") == 0
    assert made_steps.names[3:] == ["one", "two"]


def test_what_was_measured_before_the_time_was_over_is_kept(made_steps, tmp_path):
    made_steps.late = {"two"}
    assert check_made(tmp_path) == 1
    content = json.loads((tmp_path / "o" / "upscale.json").read_text())
    assert (content["finished"], list(content["runs"])) == (False, ["one"])


def test_figures_of_other_sizes_are_not_gone_on_with(made_steps, tmp_path, monkeypatch, capsys):
    assert check_made(tmp_path) == 0
    before = (tmp_path / "o" / "upscale.json").read_bytes()
    monkeypatch.setattr(gpu_check, "TINY", GPU.__class__(**(vars(TINY) | {"batch": 3})))
    assert check_made(tmp_path) == 1
    assert "measured with other sizes" in capsys.readouterr().out
    assert (tmp_path / "o" / "upscale.json").read_bytes() == before


def test_a_run_is_not_begun_that_would_probably_end_too_late():
    clock = Clock(minutes=1)
    assert 59 < clock.left() <= 60
    clock.took(61)
    with pytest.raises(OutOfTimeError):
        clock.left()


def made_figures(hidden="-", **more):
    steps = {"step_seconds": [9.0, 1.0, 1.0], "step_tokens": [128, 256, 384], "losses": [3.0]}
    return steps | {"plugin_loaded": hidden == "-", "num_layers": 12, "train_peak": None} | more


def test_throughput_takes_turns_and_hides_the_plugin(monkeypatch, tmp_path):
    seen = []

    def fake(folder, name, recipe, clock, *, hidden="-"):
        seen.append((name, hidden, recipe["base_model"], "solar" in recipe, recipe["plugins"]))
        (folder / "cache" / "upscaled-8-to-12-x").mkdir(parents=True, exist_ok=True)
        return made_figures(hidden)

    monkeypatch.setattr(gpu_steps, "train", fake)
    monkeypatch.setattr(gpu_steps, "make_base", lambda check: None)
    results = Results(tmp_path / "throughput.json", again=False)
    STEPS["throughput"](Check(TINY, tmp_path, Clock(1), results))
    plugin = ["gpu_metrics.MetricsPlugin", "solar_plugins.SolarPlugin"]
    assert seen == [
        ("throughput-first", "-", "large", True, plugin),
        ("throughput-with", "-", "large", True, plugin),
        ("throughput-without", "solar_plugins", "cache/upscaled-8-to-12-x", False, plugin[:1]),
    ]
    assert results.runs["without 1"]["tokens_per_second"] == 128.0


def test_memory_compares_the_peak_of_training_with_the_estimate(monkeypatch, tmp_path):
    peak = {"allocated": 300, "reserved": 400}
    monkeypatch.setattr(gpu_steps, "train", lambda *_: made_figures(train_peak=peak))
    monkeypatch.setattr(gpu_steps, "estimated_memory", lambda *_: {"num_layers": 12, "peak_bytes": 200})
    monkeypatch.setattr(gpu_steps, "make_base", lambda check: None)
    monkeypatch.setattr(gpu_steps, "_require_upscaled", lambda check: None)
    results = Results(tmp_path / "memory.json", again=False)
    STEPS["memory"](Check(GPU, tmp_path, Clock(1), results))
    assert len(results.runs) == 5
    assert {run["measured_over_estimated"] for run in results.runs.values()} == {1.5}
    monkeypatch.setattr(gpu_steps, "estimated_memory", lambda *_: {"num_layers": 20, "peak_bytes": 200})
    again = Results(tmp_path / "other.json", again=False)
    STEPS["memory"](Check(GPU, tmp_path, Clock(1), again))
    assert "counts 20 layers, training 12" in again.failures["LoRA, 2048 tokens"]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """Upscaling, QLoRA and recovery at tiny size, as real processes; memory and throughput share their code."""
    folder = tmp_path_factory.mktemp("rehearsal")
    steps = ["upscale", "qlora", "recovery"]
    status = gpu_check.main(
        [*steps, "--tiny", "--at-once", "2", "--folder", str(folder / "work"), "--output", str(folder / "out")]
    )
    assert status == 0, (folder / "out" / "gpu.md").read_text()
    yield folder
    shutil.rmtree(folder)


def figures_of(rehearsal, step):
    return json.loads((rehearsal / "out" / f"{step}.json").read_text())["runs"]


@pytest.mark.slow
@pytest.mark.nightly  # minutes; the GPU check changes rarely
@pytest.mark.timeout(1800)  # the first of them makes the fixture: several whole runs
def test_rehearsal_of_up_scaling_and_qlora(rehearsal):
    loaded = figures_of(rehearsal, "upscale")["load"]
    assert (loaded["num_layers"], loaded["wrong_layers"], loaded["logits_finite"]) == (12, [], True)
    qlora = figures_of(rehearsal, "qlora")["QLoRA"]
    assert (qlora["base_model"], qlora["num_layers"], qlora["four_bit_tensors"]) == ("large-upscaled", 12, 84)
    assert len(qlora["losses"]) == 2
    assert qlora["estimate"]["peak_bytes"] > qlora["estimate"]["parts"]["weights"] > 0


@pytest.mark.slow
@pytest.mark.nightly  # minutes; the GPU check changes rarely
@pytest.mark.timeout(1800)  # the first of them makes the fixture: several whole runs
def test_rehearsal_of_recovery(rehearsal):
    """A random model's loss begins near that of guessing: ln 32,000 = 10.373."""
    runs = {run["arm"]: run for run in figures_of(rehearsal, "recovery").values()}
    assert set(runs) == set(ORDER)
    depths = {"the base, equal tokens": 8, "the base, equal compute": 8}
    assert {arm: run["num_layers"] for arm, run in runs.items()} == dict.fromkeys(ORDER, 12) | depths
    base, upscaled = runs["the base, equal tokens"], runs["DUS"]
    assert base["step_tokens"] == upscaled["step_tokens"]
    assert len(runs["the base, equal compute"]["step_tokens"]) >= 4
    for arm in ("block expansion, new layers only", "DUS, seam only"):
        assert runs[arm]["trained_parameters"] < runs[arm]["parameters"]
    for run in (base, upscaled):
        points = curve(run)
        assert [found["step"] for found in run["evaluations"]] == [0, 2, 4, 4]
        assert points[0].loss.nats_per_token == pytest.approx(10.373, abs=0.05)
        assert points[-1].loss.nats_per_token < points[0].loss.nats_per_token
        assert points[0].loss.tokens == points[-1].loss.tokens > 1000
    page = (rehearsal / "out" / "gpu.md").read_text()
    assert "say nothing about a real model" in page
    assert (rehearsal / "out" / "recovery.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.nightly  # minutes; the GPU check changes rarely
@pytest.mark.timeout(1800)  # the first of them makes the fixture: several whole runs
def test_rehearsal_without_the_plugin(rehearsal):
    work = rehearsal / "work"
    cached = min((work / RECOVERY_CACHE).glob("upscaled-*"))
    assert not list((work / CACHE).glob("upscaled-*"))  # throughput takes the only one there
    recipe = small_recipe(TINY, work, grown=False, max_steps=1, base_model=f"{RECOVERY_CACHE}/{cached.name}")
    figures = train(work, "plain", recipe, Clock(5), hidden="solar_plugins")
    assert (figures["plugin_loaded"], figures["num_layers"], len(figures["losses"])) == (False, 12, 1)
    assert not (work / "trained" / "plain").exists()
