"""The checkpoint and the exported merge against the real `mergekit-yaml`."""

import json
import shutil

import pytest
import yaml

from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.mergekit import passthrough_merge, reference
from solar_plugins.upscaling.strategies import plan_of

pytestmark = pytest.mark.slow

DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
EXPANDED = LayerPlan(8, (*(PlannedLayer(i) for i in range(8)), PlannedLayer(7, "identity")))


def tensor_bytes(directory):
    tensors = find_base(str(directory)).tensors
    return {name: (t.dtype, t.shape, t.file.read_bytes()[t.start : t.end]) for name, t in tensors.items()}


def merge(run_warm, folder, source, plan):
    """mergekit's own result for the plan, and ours."""
    base = find_base(str(source))
    (folder / "merge.yml").write_text(yaml.safe_dump(passthrough_merge(str(source), base.decoder, plan)))
    merged = run_warm("mergekit-yaml", folder / "merge.yml", folder / "merged", "--out-shard-size", "40K")
    assert merged.returncode == 0, merged.stderr
    return folder / "merged", ensure_checkpoint(base, plan, folder / "cache")


# mergekit 0.1.5 silently drops the biases of a Llama-type model; all other tensors must be bit-identical.
@pytest.mark.parametrize("kind", ["llama", "llama-sharded", "llama-tied", "mistral"])
def test_bit_equal_to_mergekit(made_bases, kind, tmp_path, run_warm):
    theirs, ours = merge(run_warm, tmp_path, made_bases / kind, DUS)
    assert tensor_bytes(ours) == tensor_bytes(theirs)
    assert json.loads((theirs / "config.json").read_text())["num_hidden_layers"] == len(DUS)


def test_identity_layers_have_mergekits_values(base, tmp_path, run_warm):
    """Equal as numbers: mergekit multiplies by zero, which leaves -0.0 where the weight was negative."""
    from safetensors.torch import load_file

    theirs, ours = merge(run_warm, tmp_path, base, EXPANDED)
    expected = {name: tensor for path in theirs.glob("*.safetensors") for name, tensor in load_file(path).items()}
    written = load_file(ours / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all((written[name] == expected[name]).all() for name in written)


@pytest.mark.parametrize("factor", [0.5, 0.3, 1.7])
def test_scaled_layers_are_bit_equal_to_mergekits(base, tmp_path, run_warm, factor):
    """In bfloat16, where the product with a factor that is not a power of two is rounded."""
    plan = plan_of(InitArgs(strategy="dus", drop_layers=2, duplicates={"initializer": "scaled", "factor": factor}), 8)
    theirs, ours = merge(run_warm, tmp_path, base, plan)
    assert tensor_bytes(ours) == tensor_bytes(theirs)
    plain = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "plain")
    assert tensor_bytes(ours) != tensor_bytes(plain)


def test_mergekit_accepts_the_printed_merge(base, tmp_path, run, run_warm):
    (tmp_path / "recipe.yml").write_text(f"base_model: {base}\nsolar: {{init: {{strategy: dus, drop_layers: 2}}}}\n")
    printed = run("solar", "mergekit", tmp_path / "recipe.yml")
    (tmp_path / "merge.yml").write_text(printed.stdout)
    merged = run_warm("mergekit-yaml", tmp_path / "merge.yml", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    assert tensor_bytes(tmp_path / "merged") == tensor_bytes(
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "c")
    )


ODD = ["llama+de", "llama@v2", "a+b@c@d", "with space", 'quo"te', "hash # sign", "colon: x", "Zwölf", "-dash", "a/b+c"]


def test_mergekit_reads_the_names_that_we_write():
    """`ModelReference` of the real mergekit, for every kind of name that it splits or that YAML does."""
    from mergekit.common import ModelReference

    for path in [*ODD, "org/model", "/plain/path"]:
        for revision in (None, "main", "refs/pr/1", "v1+cu@2"):
            read = ModelReference.model_validate(yaml.safe_load(yaml.safe_dump(reference(path, revision))))
            assert (read.model.path, read.model.revision, read.lora) == (path, revision, None)


@pytest.mark.parametrize("name", ["llama+de", "llama@v2", 'with "quotes", spaces'])
def test_unusual_folders_and_dtypes(made_bases, tmp_path, run, run_warm, name):
    """mergekit runs in another folder than ours; the bf16 model has fp32 norms, which stay fp32."""
    from safetensors.torch import load_file, save_file

    base = tmp_path / "models" / name
    shutil.copytree(made_bases / "llama", base)
    weights = load_file(base / "model.safetensors")
    weights = {key: tensor.float() if "norm" in key else tensor for key, tensor in weights.items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (base / "config.json").write_text(json.dumps(config))
    recipe = {"base_model": f"models/{name}", "solar": {"init": {"strategy": "dus", "drop_layers": 2}}}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    printed = run("solar", "mergekit", "recipe.yml", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "merge.yml").write_text(printed.stdout)
    merged = run_warm("mergekit-yaml", "merge.yml", "merged", cwd=elsewhere)
    assert merged.returncode == 0, merged.stderr
    assert tensor_bytes(elsewhere / "merged") == tensor_bytes(
        ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "c")
    )


@pytest.mark.parametrize(
    "slices",
    [
        [[0, 6], {"model": "donor", "layers": [2, 6]}],
        [{"model": "donor", "layers": [0, 4]}, [2, 4], {"model": "donor", "layers": [3, 6]}],
        [{"model": "donor", "layers": [1, 3]}, [2, 8]],
    ],
    ids=["donor on top", "donor at both ends", "donor below"],
)
def test_layers_of_two_models(made_bases, tiny_model, tmp_path, run, run_warm, slices):
    """Embeddings, last norm and head are the base's, although mergekit takes them from the outermost slices."""
    shutil.copytree(made_bases / "llama", tmp_path / "base")
    tiny_model(tmp_path / "donor", num_hidden_layers=6, seed=1)
    for name in ("base", "donor"):
        (tmp_path / name / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": []}')
    recipe = {"base_model": "base", "solar": {"init": {"strategy": "slices", "slices": slices}}}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    printed = run("solar", "mergekit", "recipe.yml", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    (tmp_path / "merge.yml").write_text(printed.stdout)
    merged = run_warm("mergekit-yaml", "merge.yml", "merged", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    made = run_warm(
        "solar", "upscale", "base", "ours", "--strategy", "slices", "--slices", json.dumps(slices), cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    assert tensor_bytes(tmp_path / "ours") == tensor_bytes(tmp_path / "merged")
    both = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("ours", "merged")]
    assert both[0]["num_hidden_layers"] == both[1]["num_hidden_layers"]
