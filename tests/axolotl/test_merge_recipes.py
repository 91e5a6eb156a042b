"""The shipped merges of two models, run by the real `mergekit-yaml` on tiny models of the same kind."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file

from solar_plugins.plugins.recipe_packs import recipe_directory
from solar_plugins.recipe import read_yaml

pytestmark = pytest.mark.slow

RECIPES = ["solar_sft_average.yml", "solar_average.yml", "solar_slerp.yml"]


def made_model(directory, seed, tokenizer):
    """A tiny Llama-type model in bfloat16, with a tokenizer that has a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 32000}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if parameter.dim() == 1 else 0.0)
    model.to(torch.bfloat16).save_pretrained(directory)
    for path in tokenizer.iterdir():
        shutil.copy(path, directory)
    (directory / "chat_template.jinja").write_text(f"template of model {seed}")
    return directory


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, sentencepiece_tokenizer):
    top = tmp_path_factory.mktemp("two")
    return made_model(top / "first", 1, sentencepiece_tokenizer), made_model(top / "second", 2, sentencepiece_tokenizer)


def merge(run, folder, recipe, models, weights=None):
    """The shipped recipe with other models, and other weights if they are given; what comes out."""
    content = dict(read_yaml(recipe_directory() / "mergekit" / recipe))
    renamed = dict(zip([entry["model"] for entry in content["models"]], map(str, models), strict=True))
    content["models"] = [entry | {"model": renamed[entry["model"]]} for entry in content["models"]]
    content["base_model"] = renamed[content["base_model"]]
    for entry, weight in zip(content["models"], weights or [], strict=False):
        entry["parameters"] = {"weight": weight}
    (folder / "merge.yml").write_text(yaml.safe_dump(content))
    merged = run("mergekit-yaml", folder / "merge.yml", folder / "merged")
    assert merged.returncode == 0, merged.stderr
    return folder / "merged"


def tensors(directory):
    return {
        name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        ("solar_sft_average.yml", None),
        ("solar_average.yml", None),
        ("solar_average.yml", (0.4, 0.6)),
        ("solar_average.yml", (0.6, 0.4)),
    ],
)
def test_the_average_is_the_exact_mean(two_models, tmp_path, run_warm, recipe, weights):
    """Within one rounding: the sum in float64, rounded to bfloat16, differs at most by half a step of bfloat16 (2^-8 of
    the value) and by float32's error before it (2^-22 of the larger term)."""
    import torch

    first, second = map(tensors, two_models)
    merged = tensors(merge(run_warm, tmp_path, recipe, two_models, weights))
    share, other = weights or (0.5, 0.5)
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == torch.bfloat16
        expected = share * first[name].double() + other * second[name].double()
        largest = torch.maximum(first[name].double().abs(), second[name].double().abs())
        assert ((tensor.double() - expected).abs() <= expected.abs() * 2**-8 + largest * 2**-22).all(), name
        if weights is None:  # Halves are exact in float32: then there is one rounding only, and no tolerance.
            assert torch.equal(tensor, expected.to(torch.bfloat16)), name
        else:
            swapped = other * first[name].double() + share * second[name].double()
            assert not torch.equal(tensor, swapped.to(torch.bfloat16)), "each weight applies to its own model"


def test_slerp_at_one_half(two_models, tmp_path, run_warm):
    """At t = 0.5 both coefficients are 1 / (2 cos(angle / 2)) (Shoemake 1985), with the angle of flattened tensors."""
    import torch

    first, second = map(tensors, two_models)
    merged = tensors(merge(run_warm, tmp_path, "solar_slerp.yml", two_models))
    turned = 0
    for name, tensor in merged.items():
        a, b = first[name].double(), second[name].double()
        cosine = (a * b).sum() / (a.norm() * b.norm())
        turned += bool(cosine < 0.9995)
        expected = (a + b) / (2 * torch.cos(torch.acos(cosine.clamp(-1, 1)) / 2) if cosine < 0.9995 else 2)
        assert ((tensor.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all(), name
    assert turned == len(merged), "no tensor of two random models has the same direction"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_model_merged_with_itself_is_that_model(two_models, tmp_path, run_warm, recipe):
    """mergekit rejects the same path twice, so the second is a copy."""
    import torch

    copy = shutil.copytree(two_models[0], tmp_path / "copy")
    merged, expected = tensors(merge(run_warm, tmp_path, recipe, (two_models[0], copy))), tensors(two_models[0])
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.nightly) for name in RECIPES[:-1]] + RECIPES[-1:]
)
def test_tokenizer_and_config_are_the_first_model_s_whatever_the_hash_seed(two_models, tmp_path, run, recipe):
    """Without ``base_model`` mergekit takes them from the first of a set of models, which the hash seed orders."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = merge(run, tmp_path, recipe, two_models)
    assert (merged / "chat_template.jinja").read_text() == "template of model 1"
    texts = ["### User:\nHi\n\n### Assistant:\n", "3 + 4 = 7</s>"]
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (merged, two_models[0]))
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert json.loads((merged / "config.json").read_text())["num_hidden_layers"] == 3
    _, info = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
