"""Layers from several models: what is written, what is refused, and what is recorded."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError, CheckpointError, PlanError
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base, find_config
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.decoder import Decoder
from solar_plugins.upscaling.donors import refuse_other_config
from solar_plugins.upscaling.layer_plan import Donor
from solar_plugins.upscaling.provenance import requested_plan
from solar_plugins.upscaling.strategies import plan_of
from solar_plugins.upscaling.trained_layers import new_layers
from solar_plugins.upscaling.verify import verify_checkpoint

TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
}


@pytest.fixture(scope="session")
def made_pair(tmp_path_factory, tiny_model):
    top = tmp_path_factory.mktemp("pair")
    for name, layers, seed in (("base", 8, 0), ("donor", 6, 1)):
        tiny_model(top / name, num_hidden_layers=layers, seed=seed)
        (top / name / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return top


@pytest.fixture
def pair(made_pair, tmp_path):
    """A base of 8 layers, and a donor of 6 layers with other weights."""
    return [Path(shutil.copytree(made_pair / name, tmp_path / name)) for name in ("base", "donor")]


def grown(base, donor, slices=None, **more):
    """The base with its donor, and the plan."""
    slices = slices or [[0, 5], {"model": str(donor), "layers": [2, 6]}, [6, 8]]
    found = find_base(str(base))
    init = InitArgs(strategy="slices", slices=slices, **more)
    return found.with_donors(plan_of(init, found.num_layers), init)


def change(path, **values):
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def test_every_layer_is_that_of_its_own_model(pair, tmp_path):
    made = ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    written = load_file(made / "model.safetensors")
    base, donor = (load_file(folder / "model.safetensors") for folder in pair)
    origins = [*((base, n) for n in range(5)), *((donor, n) for n in range(2, 6)), (base, 6), (base, 7)]
    expected = {name: tensor for name, tensor in base.items() if ".layers." not in name}
    for new, (tensors, old) in enumerate(origins):
        start = f"model.layers.{old}."
        expected |= {
            f"model.layers.{new}.{name.removeprefix(start)}": tensor
            for name, tensor in tensors.items()
            if name.startswith(start)
        }
    assert written.keys() == expected.keys()
    assert all(written[name].equal(tensor) for name, tensor in expected.items())
    config = json.loads((made / "config.json").read_text())
    assert config["num_hidden_layers"] == 11
    assert config["solar_plugins"]["plan"]["donors"] == [{"name": "donor", "revision": None, "num_layers": 6}]
    assert str(tmp_path) not in (made / "config.json").read_text() + (made / "solar_plan.json").read_text()
    verified = verify_checkpoint(made, str(pair[0]), donors=[str(pair[1])])
    assert verified.tensors == len(written)
    assert "reads 11 layers" in verified.config


def test_a_donor_that_is_the_base_is_the_base(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = plan_of(InitArgs(strategy="slices", slices=[[0, 6], [2, 8]]), 8)
    for name in ("base", "./base", str(pair[0])):
        assert grown("base", None, [[0, 6], {"model": name, "layers": [2, 8]}])[1] == plain
    (tmp_path / "link").symlink_to(pair[0])
    assert grown("base", None, [[0, 6], {"model": "link", "layers": [2, 8]}])[1] == plain
    twice = [{"model": "donor", "layers": [0, 3]}, {"model": "./donor", "layers": [3, 6]}]
    base, plan = grown("base", None, twice)
    assert (len(base.donors), plan.donors, plan.seams()) == (1, (Donor("donor", None, 6),), ())


def test_duplicates_under_two_names_of_one_model_are_rejected(pair):
    slices = [[0, 6], {"model": str(pair[0]), "layers": [2, 8]}]
    with pytest.raises(ArgsError, match=r"one of these is the base.*omit model:"):
        grown(*pair, slices, duplicates="identity")
    slices[1]["layers"] = [6, 8]
    assert grown(*pair, slices, duplicates="identity")[1].only_copies


def test_a_layer_from_the_wrong_donor_is_found(pair, tmp_path):
    base, donor = pair
    made = ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    name = "self_attn.q_proj.weight"
    wrong = find_base(str(base)).tensors[f"model.layers.3.{name}"]
    right = find_base(str(made)).tensors[f"model.layers.6.{name}"]
    content = bytearray(right.file.read_bytes())
    content[right.start : right.end] = wrong.file.read_bytes()[wrong.start : wrong.end]
    right.file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"tensor 'model.layers.6.{name}' \(a copy of 'model.layers.3.{name}'.*"):
        verify_checkpoint(made, str(base), donors=[str(donor)])
    with pytest.raises(CheckpointError, match=r"layers from a local directory called 'donor'.*--donor PATH"):
        verify_checkpoint(made, str(base))
    with pytest.raises(CheckpointError, match="two of the given models are the same"):
        verify_checkpoint(made, str(base), donors=[str(base)])
    with pytest.raises(CheckpointError, match="--donor was given 2 times, expected 1"):
        verify_checkpoint(made, str(base), donors=[str(donor), str(donor)])


def test_a_changed_donor_makes_a_new_checkpoint(pair, tmp_path):
    first = ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    assert ensure_checkpoint(*grown(*pair), tmp_path / "cache") == first
    tensors = load_file(pair[1] / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, pair[1] / "model.safetensors", {"format": "pt"})
    second = ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    assert second != first
    with pytest.raises(CheckpointError, match=r"layers.5.*of .*donor\), at byte 0.*or a donor is not the recorded one"):
        verify_checkpoint(first, str(pair[0]), donors=[str(pair[1])])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope_theta", 500000.0, "rope_theta is 500000.0, the base's is absent"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps is 1e-05, the base's is 1e-06"),
        ("hidden_act", "gelu", "hidden_act is 'gelu', the base's is 'silu'"),
        ("num_key_value_heads", 4, "num_key_value_heads is 4, the base's is 2"),
        ("vocab_size", 130, "vocab_size is 130, the base's is 128"),
        ("dtype", "float32", r"dtype is 'float32', the base's is 'bfloat16'; convert .*, dtype='bfloat16'\)"),
        ("attention_bias", "absent", "attention_bias is absent, the base's is False"),
        ("model_type", "mistral", "model_type is 'mistral', the base's is 'llama'"),
        ("quantization_config", {"quant_method": "awq"}, "is quantized"),
        ("auto_map", {"AutoModel": "modeling.Model"}, "auto_map"),
    ],
)
def test_another_config_is_refused_with_the_first_difference(pair, key, value, message):
    change(pair[1] / "config.json", **{key: value})
    with pytest.raises(CheckpointError, match=f"^donor {pair[1]}: .*{message}"):
        grown(*pair)


def test_keys_that_do_not_affect_a_layer_may_differ(pair):
    change(pair[1] / "config.json", transformers_version="4.0", eos_token_id=7, use_cache=False, _name_or_path="x")
    change(pair[1] / "config.json", max_length=9, dtype="absent", torch_dtype="bfloat16")
    base, plan = grown(*pair)
    assert (len(base.donors), len(plan)) == (1, 11)


def test_layers_that_the_donor_lacks_are_rejected(pair):
    with pytest.raises(
        PlanError,
        match=r"new layer 8: layer 6 of the donor donor does not exist; it has .* 0 to 5, so give",
    ):
        grown(*pair, [[0, 4], {"model": str(pair[1]), "layers": [2, 8]}])
    with pytest.raises(
        CheckpointError, match=r"^donor /no/such/folder: '/no/such/folder' is neither a local directory"
    ):
        grown(pair[0], "/no/such/folder")


QWEN = {"model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8}
FULL, WINDOW = "full_attention", "sliding_attention"


def upscaled(base, donor, slices):
    from solar_plugins.upscaling.upscaled_config import upscale_config

    decoders = [Decoder.of(base), Decoder.of(donor)]
    refuse_other_config(*decoders, "b")
    plan = plan_of(InitArgs(strategy="slices", slices=slices), decoders[0].num_layers)
    return upscale_config(decoders[0], plan, decoders[1:])


def test_per_layer_values_are_each_models_own():
    """A list is mixed; a threshold of the donor is read as that donor means it."""
    base = QWEN | {"max_window_layers": 2, "layer_types": [FULL, FULL, WINDOW, WINDOW]}
    donor = QWEN | {"num_hidden_layers": 3, "max_window_layers": 1}
    slices = [[1, 3], {"model": "b", "layers": [0, 3]}]
    config = upscaled(base, donor, slices)
    assert config["layer_types"] == [FULL, WINDOW, FULL, WINDOW, WINDOW]
    # Where the model derives them from a number, a plan that needs a list gets one.
    del base["layer_types"]
    assert upscaled(base, donor, slices)["layer_types"] == [FULL, WINDOW, FULL, WINDOW, WINDOW]


def test_a_multimodal_model():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 2, "layer_types": [WINDOW] * 2, "hidden_size": 8}
    base = {"model_type": "gemma3", "text_config": text, "vision_config": {"depth": 3}}
    donor = base | {"text_config": text | {"num_hidden_layers": 1, "layer_types": [FULL]}}
    slices = [[0, 2], {"model": "b", "layers": [0, 1]}]
    assert upscaled(base, donor, slices)["text_config"]["layer_types"] == [WINDOW, WINDOW, FULL]
    with pytest.raises(CheckpointError, match=r"json: text_config.hidden_size is 9, the base's is 8"):
        upscaled(base, base | {"text_config": text | {"hidden_size": 9}}, slices)
    with pytest.raises(CheckpointError, match=r"json: vision_config is"):
        upscaled(base, donor | {"vision_config": {"depth": 4}}, slices)
    with pytest.raises(CheckpointError, match=r"model_type is 'gemma3', the base's is 'gemma3_text'"):
        upscaled(text, donor, slices)


def test_per_layer_values_that_cannot_be_combined_are_refused():
    moe = {"model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1}
    donor = moe | {"first_k_dense_replace": 2}
    assert upscaled(moe, donor, [{"model": "b", "layers": [0, 2]}, [1, 4]])["first_k_dense_replace"] == 2
    with pytest.raises(
        CheckpointError, match="first_k_dense_replace cannot express this plan: new layer 4, a copy of b"
    ):
        upscaled(moe, donor, [[0, 4], {"model": "b", "layers": [1, 4]}])
    llama = {"model_type": "llama", "num_hidden_layers": 2}
    with pytest.raises(CheckpointError, match="layer_types is absent in one model"):
        upscaled(llama | {"layer_types": [FULL] * 2}, llama, [[0, 2], {"model": "b", "layers": [0, 2]}])


def test_keys_next_to_a_list_of_layers_must_be_equal():
    lists = {"full_attn_layers": [2], "kda_layers": [1], "head_dim": 8}
    kimi = {"model_type": "kimi_linear", "num_hidden_layers": 2, "linear_attn_config": lists}
    other = kimi | {"linear_attn_config": lists | {"full_attn_layers": [1], "kda_layers": [2]}}
    slices = [[0, 2], {"model": "b", "layers": [0, 2]}]
    assert upscaled(kimi, other, slices)["linear_attn_config"] == lists | {
        "full_attn_layers": [2, 3],
        "kda_layers": [1, 4],
    }
    with pytest.raises(CheckpointError, match=r"linear_attn_config.head_dim is 4, the base's is 8"):
        upscaled(kimi, kimi | {"linear_attn_config": lists | {"head_dim": 4}}, slices)


def test_layers_of_a_kind_that_the_base_lacks(tiny_model, tmp_path):
    """The window of a donor's layers is theirs; their dtype must still be the base's."""
    common = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 8}
    folders = [
        tiny_model(tmp_path / name, "qwen2", layer_types=[kind] * 2, seed=seed, **common)
        for seed, (name, kind) in enumerate((("base", FULL), ("donor", WINDOW)))
    ]
    for folder in folders:
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    slices = [[0, 2], {"model": str(folders[1]), "layers": [1, 2]}]
    made = ensure_checkpoint(*grown(*folders, slices), tmp_path / "cache")
    assert json.loads((made / "config.json").read_text())["layer_types"] == [FULL, FULL, WINDOW]
    assert "layer_types" in verify_checkpoint(made, str(folders[0]), donors=[str(folders[1])]).config
    path = folders[1] / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"of layer 0 is F16 .*, but BF16 .* in the base's layer 0"):
        ensure_checkpoint(*grown(*folders, slices), tmp_path / "cache")


TOKENIZERS = {
    "vocabulary": ({"model": TOKENIZER["model"] | {"vocab": {"a": 0, "c": 1, "ab": 2}}}, r"model.vocab.b is 'absent'"),
    "order": (
        {"model": TOKENIZER["model"] | {"vocab": {"a": 1, "b": 0, "ab": 2}}},
        "model.vocab.a is 1, the base's is 0",
    ),
    "merges": ({"model": TOKENIZER["model"] | {"merges": ["b a"]}}, r"model.merges\[0\] is 'b a', the base's is 'a b'"),
    "added": ({"added_tokens": [{"id": 3, "content": "<t>", "special": True}]}, r"added_tokens\[0\].content is '<t>'"),
}


@pytest.mark.parametrize(("values", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_another_tokenizer_of_the_same_size_is_refused(pair, tmp_path, values, message):
    change(pair[1] / "tokenizer.json", **values)
    with pytest.raises(CheckpointError, match=f"donor {pair[1]}: tokenizer.json: {message}"):
        ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    assert not [*(tmp_path / "cache").glob("upscaled-*[0-9a-f]")]


def test_tokenizers_that_say_the_same_are_the_same(pair, tmp_path):
    model = TOKENIZER["model"] | {"merges": [["a", "b"]], "ignore_merges": False, "dropout": None}
    change(pair[1] / "tokenizer.json", model=model, post_processor={"type": "TemplateProcessing"}, truncation=None)
    ensure_checkpoint(*grown(*pair), tmp_path / "cache")


def test_tokenizers_without_a_json(pair, tmp_path):
    for folder in pair:
        (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="cannot compare its tokenizer"):
        ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    for folder in pair:
        (folder / "tokenizer.model").write_bytes(b"pieces")
    ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    (pair[1] / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"added_tokens.json differs from the base's"):
        ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    (pair[1] / "tokenizer.model").write_bytes(b"Pieces")
    with pytest.raises(CheckpointError, match=r"tokenizer.model differs from the base's"):
        ensure_checkpoint(*grown(*pair), tmp_path / "cache")


def test_other_tensors_in_a_layer_are_refused(pair, tmp_path):
    import torch

    path = pair[1] / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor.to(torch.float16) for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"of layer 0 is F16 .*BF16 .* in the base's layer 0"):
        ensure_checkpoint(*grown(*pair), tmp_path / "cache")
    extra = {f"model.layers.{n}.self_attn.q_norm.weight": torch.ones(8, dtype=torch.bfloat16) for n in range(6)}
    save_file(tensors | extra, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"q_norm.weight"):
        ensure_checkpoint(*grown(*pair), tmp_path / "cache")


def test_duplicates_count_by_model_and_layer(pair, tmp_path):
    slices = [[0, 3], {"model": str(pair[1]), "layers": [0, 3]}, {"model": str(pair[1]), "layers": [2, 4]}]
    base, plan = grown(*pair, slices, duplicates={"initializer": "average"})
    assert [layer.initialization for layer in plan.layers] == ["copy"] * 6 + ["average", "copy"]
    written = load_file(ensure_checkpoint(base, plan, tmp_path / "cache") / "model.safetensors")
    donor = load_file(pair[1] / "model.safetensors")
    name = "mlp.up_proj.weight"
    ends = [donor[f"model.layers.{n}.{name}"].float() for n in (2, 3)]
    assert written[f"model.layers.6.{name}"].equal(((ends[0] + ends[1]) / 2).bfloat16())


def test_every_layer_of_a_donor_is_new(pair):
    _, plan = grown(*pair)
    assert new_layers(plan) == (5, 6, 7, 8)


def test_a_recipe_recognizes_its_own_result(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slices = [{"model": "./base", "layers": [0, 5]}, {"model": "./donor", "layers": [2, 6]}, [6, 8]]
    made = ensure_checkpoint(*grown("base", None, slices), tmp_path / "cache")
    decoder = find_base(str(made)).decoder
    init = InitArgs(strategy="slices", slices=slices)
    shutil.rmtree("donor")  # It is not needed any more.
    assert requested_plan(decoder, "m", init).already_grown
    for other in ([*slices[:2], [5, 7]], [slices[0], slices[1] | {"model": "other/donor2"}, slices[2]]):
        with pytest.raises(ArgsError, match="asks for another plan"):
            requested_plan(decoder, "m", InitArgs(strategy="slices", slices=other))


def test_the_commands(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slices = "[[0, 5], {model: donor, layers: [2, 6]}]"
    shown = CliRunner().invoke(solar, ["plan", "--base", "base", "--strategy", "slices", "--slices", slices])
    assert shown.exit_code == 0, shown.output
    assert "new      5..8   = donor 2..5" in shown.output
    assert "seam: layer 4 of base feeds layer 2 of donor, another model" in shown.output
    Path("recipe.yml").write_text(
        yaml.safe_dump(
            {"base_model": "base", "solar": {"init": {"strategy": "slices", "slices": yaml.safe_load(slices)}}}
        )
    )
    as_json = json.loads(CliRunner().invoke(solar, ["plan", "recipe.yml", "--json"]).stdout)
    assert as_json["seams"] == [
        {"position": 5, "below": 4, "above": 2, "distance": None, "below_model": 0, "above_model": 1}
    ]
    assert as_json["weights_checked"]
    made = CliRunner().invoke(solar, ["upscale", "base", "out", "--strategy", "slices", "--slices", slices])
    assert made.exit_code == 0, made.output
    checked = CliRunner().invoke(solar, ["verify", "out", "--base", "base", "--donor", "donor"])
    assert checked.exit_code == 0, checked.output
    merge = yaml.safe_load(CliRunner().invoke(solar, ["mergekit", "recipe.yml"]).stdout)
    assert [one["sources"][0] for one in merge["slices"]] == [
        {"model": str(pair[0]), "layer_range": [0, 5]},
        {"model": str(pair[1]), "layer_range": [2, 6]},
        {"model": str(pair[0]), "layer_range": [0, 0]},
    ]
    inside = CliRunner().invoke(solar, ["upscale", "base", "donor/out", "--strategy", "slices", "--slices", slices])
    assert "is inside the directory of the donor" in inside.output


def test_models_of_the_hub(pair, tmp_path, monkeypatch):
    """In the cache's layout: `main` of the donor is one commit, and `old` is another one's."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for name, folder, commit, ref in (
        ("base", pair[0], "a" * 40, "main"),
        ("donor", pair[1], "b" * 40, "main"),
        ("donor", pair[1], "c" * 40, "old"),
    ):
        repository = tmp_path / "hub" / f"models--org--{name}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    slices = [{"model": "org/base", "layers": [0, 3]}, {"model": "org/donor", "layers": [0, 2]}]
    slices += [{"model": "org/donor", "revision": "old", "layers": [2, 4]}]
    base, plan = grown("org/base", None, slices)
    assert plan.donors == (Donor("org/donor", "b" * 40, 6), Donor("org/donor", "c" * 40, 6))
    assert base.identity == " + ".join(
        f"hub:org/{name}@{commit * 40}" for name, commit in (("base", "a"), ("donor", "b"), ("donor", "c"))
    )
    made = ensure_checkpoint(base, plan, tmp_path / "cache")
    assert "base_model:\n- org/base\n- org/donor\nbase_model_relation: merge\n" in (made / "README.md").read_text()
    assert verify_checkpoint(made).plan == plan
    decoder = find_base(str(made)).decoder
    assert requested_plan(decoder, "m", InitArgs(strategy="slices", slices=slices)).already_grown
    for other in ({"model": "other/donor"}, {"revision": "d" * 40}):
        init = InitArgs(strategy="slices", slices=[*slices[:2], slices[2] | other])
        with pytest.raises(ArgsError, match="asks for another plan"):
            requested_plan(decoder, "m", init)
    Path("recipe.yml").write_text(
        yaml.safe_dump({"base_model": "org/base", "solar": {"init": {"strategy": "slices", "slices": slices}}})
    )
    merge = yaml.safe_load(CliRunner().invoke(solar, ["mergekit", "recipe.yml"]).stdout)
    assert [one["sources"][0]["model"] for one in merge["slices"]] == [
        "org/base",
        "org/donor",
        "org/donor@old",
        "org/base",
    ]
    assert merge["base_model"] == "org/base"
    # A finished checkpoint needs no weights of any donor any more.
    for path in (tmp_path / "hub").rglob("model.safetensors"):
        path.unlink()
    assert ensure_checkpoint(*grown("org/base", None, slices), tmp_path / "cache") == made


def test_a_plan_from_configs_alone(pair, tmp_path):
    (pair[1] / "model.safetensors").unlink()
    slices = [[0, 5], {"model": str(pair[1] / "config.json"), "layers": [2, 6]}]
    found = find_config(str(pair[0]))
    init = InitArgs(strategy="slices", slices=slices)
    base, plan = found.with_donors(plan_of(init, 8), init)
    assert (base.folder, plan.donors) == (None, (Donor("donor", None, 6),))
