"""A fresh virtual environment with the core alone, as `pip install` makes it of the wheel of `make dist`."""

import json
import os
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from solar_plugins.extras import EXTRA_OF

pytestmark = [pytest.mark.slow, pytest.mark.network]

REPOSITORY = Path(__file__).parents[2]
MAX_BYTES = 200_000_000
NUM_LAYERS, HIDDEN, INNER, VOCABULARY = 4, 8, 12, 16
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": NUM_LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "vocab_size": VOCABULARY,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
LAYER_SHAPES = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj.weight": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate_proj.weight": (INNER, HIDDEN),
    "mlp.up_proj.weight": (INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
}


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """The folder of the environment. No index, no network: then this fails, and says pip's own words."""
    folder = tmp_path_factory.mktemp("core")
    source = folder / "source"  # A build leaves files in its source.
    for name in ("solar_plugins", "recipes"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)  # As `make dist`: the wheel is made from the archive.
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    pip = [folder / "environment" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True)
    return folder / "environment"


@pytest.fixture
def base(tmp_path):
    """A Llama-type base of 4 layers, written by hand, and a recipe that upscales it."""
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    for layer in range(NUM_LAYERS):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in LAYER_SHAPES.items()}
    generator = numpy.random.default_rng(0)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: generator.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    recipe = {"base_model": "base", "solar": {"init": {"strategy": "dus", "drop_layers": 1}}, "sequence_len": 16}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "base"


@pytest.fixture
def solar(core, base):
    """Run `solar` of that environment in the folder of the base."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run_solar(*arguments, status=0):
        result = subprocess.run(
            [core / "bin" / "solar", *arguments],
            cwd=base.parent,
            env=outside,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == status, result.stderr
        return result.stderr if status else result.stdout

    return run_solar


def test_it_is_small_and_has_no_torch(core):
    assert sum(path.lstat().st_size for path in core.rglob("*") if path.is_file()) < MAX_BYTES
    heavy = ["torch", "transformers", "axolotl", "mergekit"]
    code = f"from importlib.util import find_spec; print([name for name in {heavy} if find_spec(name)])"
    shown = subprocess.run([core / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_plan(solar):
    report = json.loads(solar("plan", "recipe.yml", "--json"))
    assert [layer["source"] for layer in report["layers"]] == [0, 1, 2, 1, 2, 3]
    per_layer = sum(map(prod, LAYER_SHAPES.values()))
    assert report["parameters"] == 6 * per_layer + 2 * VOCABULARY * HIDDEN + HIDDEN
    assert "GPUs        1, 24 GB each" in solar("plan", "recipe.yml", "--memory", "--gpus", "1", "--gpu-memory", "24")


def test_upscale_and_verify(solar, base):
    solar("upscale", "base", "grown", "--drop-layers", "1")
    before, after = (load_file(base.parent / name / "model.safetensors") for name in ("base", "grown"))
    for name in LAYER_SHAPES:
        for new, old in enumerate([0, 1, 2, 1, 2, 3]):
            numpy.testing.assert_array_equal(
                after[f"model.layers.{new}.{name}"], before[f"model.layers.{old}.{name}"], strict=True
            )
    assert json.loads((base.parent / "grown" / "config.json").read_text())["num_hidden_layers"] == 6
    assert "4 -> 6 layers" in solar("verify", "grown", "--base", "base")
    solar("upscale", "base", "expanded", "--strategy", "block_expansion", "--new-layers", "2")
    expanded = load_file(base.parent / "expanded" / "model.safetensors")
    assert not expanded["model.layers.2.self_attn.o_proj.weight"].any()
    solar("verify", "expanded", "--base", "base")


def test_mergekit(solar):
    merge = yaml.safe_load(solar("mergekit", "recipe.yml"))
    ranges = [one["sources"][0]["layer_range"] for one in merge["slices"]]
    assert ranges == [[0, 3], [1, 4]]


def test_recipes(solar, base):
    assert "solar_plugins/solar_dus.yml  " in solar("recipes", "list")
    solar("recipes", "copy", "mine")
    copies = base.parent / "mine"
    for name in ("smollm2/prepare.py", "deepspeed/zero3_bf16.json"):
        assert (copies / name).read_bytes() == (REPOSITORY / "recipes" / name).read_bytes()
    copied = yaml.safe_load((copies / "solar_dus.yml").read_text())
    ours = yaml.safe_load((REPOSITORY / "recipes" / "solar_dus.yml").read_text())
    assert copied == ours | {"deepspeed": "mine/deepspeed/zero3_bf16.json"}
    assert "-m axolotl.cli.train mine/solar_dus.yml" in (copies / "solar_dus.yml").read_text()


def test_a_base_on_the_hub_that_cannot_be_fetched(solar):
    """The hub's library of this environment is the newest; its errors come from another transport than Axolotl's."""
    said = solar("plan", "--base", "nobody/nothing", "--drop-layers", "1", status=1)
    assert said.startswith(
        "Error: base_model: 'nobody/nothing' is not a local directory and cannot be downloaded from the hub"
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("solar plan --plot", ["plan", "recipe.yml", "--plot", "plan.png"]),
        ("solar report", ["report", "recipe.yml"]),
        ("solar sdpo-order", ["sdpo-order", "base", "pairs.jsonl"]),
        ("reading a Parquet, .zst or .lz4 file", ["mix", "mix.yml"]),
    ],
)
def test_another_command_says_how_to_install_what_it_needs(solar, base, command, arguments):
    (base.parent / "mix.yml").write_text("output: mixed\nsets: {a: {path: rows.parquet, text_columns: text}}\n")
    said = solar(*arguments, status=1)
    assert said.startswith(f"Error: {command} needs ")
    assert said.endswith(f" (not installed); run pip install 'solar_plugins[{EXTRA_OF[command]}]'\n")
    assert said.count("\n") == 1
