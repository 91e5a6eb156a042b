"""Which files of a folder hold the weights: what transformers loads, and what a folder without them is called."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from solar_plugins.errors import CheckpointError
from solar_plugins.report.plan_report import plan_for_base
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import ensure_checkpoint, write_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import MARKER
from solar_plugins.upscaling.verify import verify_checkpoint
from solar_plugins.upscaling.weight_files import INDEX, SINGLE_FILE

DUS = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])


def write_index(base, weight_map):
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def named_by_index(base):
    """One file, and an index that names exactly that file."""
    write_index(base, dict.fromkeys(load_file(base / SINGLE_FILE), SINGLE_FILE))


def with_sidecar(base):
    """One file, and an index that names it and another file of prediction layers."""
    names = dict.fromkeys(load_file(base / SINGLE_FILE), SINGLE_FILE)
    save_file({"mtp.fc.weight": torch.zeros(4, 4)}, base / "mtp.safetensors", metadata={"format": "pt"})
    write_index(base, names | {"mtp.fc.weight": "mtp.safetensors"})


def with_a_sidecar_that_was_not_fetched(base):
    with_sidecar(base)
    (base / "mtp.safetensors").unlink()


def in_two_shards(base, *, extra=None, listed=None):
    tensors = load_file(base / SINGLE_FILE)
    (base / SINGLE_FILE).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for filename, part in parts.items():
        more = extra if extra and filename == "a.safetensors" else {}
        save_file({name: tensors[name] for name in part} | more, base / filename, metadata={"format": "pt"})
    write_index(base, {name: filename for filename, part in parts.items() for name in part} | (listed or {}))


def with_more_than_the_index(base):
    in_two_shards(base, extra={"old_head.weight": torch.zeros(3)})


def with_layers_that_only_the_shards_have(base):
    """Fewer layers by editing config and index: the shards still hold the last one."""
    in_two_shards(base)
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    write_index(base, {name: file for name, file in weight_map.items() if ".layers.7." not in name})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))


def with_buffers_that_only_the_index_has(base):
    in_two_shards(base, listed={f"model.layers.{i}.self_attn.rotary_emb.inv_freq": "a.safetensors" for i in range(8)})


@pytest.mark.parametrize(
    "make",
    [
        named_by_index,
        with_sidecar,
        with_a_sidecar_that_was_not_fetched,
        with_more_than_the_index,
        with_layers_that_only_the_shards_have,
        with_buffers_that_only_the_index_has,
    ],
)
def test_the_weights_that_transformers_loads_are_upscaled(base, make, tmp_path):
    """The result's layers are those of the base as transformers loads it."""
    make(base)
    loaded, info = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert not info["missing_keys"], "transformers itself must take the base"
    found = find_base(str(base))
    plan = LayerPlan.from_sources(found.num_layers, [*range(found.num_layers), 3])
    write_checkpoint(found, plan, tmp_path / "out")
    deeper, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    expected = loaded.state_dict()
    for name, tensor in deeper.state_dict().items():
        source = name.replace(f".layers.{found.num_layers}.", ".layers.3.")
        assert torch.equal(tensor, expected[source]), name


def test_a_tied_head_that_only_the_index_lists(tiny_model, tmp_path):
    base = tiny_model(tmp_path / "base", tie_word_embeddings=True)
    in_two_shards(base, listed={"lm_head.weight": "a.safetensors"})
    write_checkpoint(find_base(str(base)), DUS, tmp_path / "out")
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]


def test_a_tensor_in_two_shards_is_rejected_if_the_index_and_transformers_differ(base):
    in_two_shards(base, extra={"model.norm.weight": torch.zeros(32, dtype=torch.bfloat16)})
    weight_map = json.loads((base / INDEX).read_text())["weight_map"]
    assert weight_map["model.norm.weight"] == "b.safetensors"
    assert find_base(str(base)).tensors["model.norm.weight"].file.name == "b.safetensors"
    write_index(base, weight_map | {"model.norm.weight": "a.safetensors"})
    with pytest.raises(
        CheckpointError, match=r"'model.norm.weight' is in b.safetensors, from which transformers would load"
    ):
        _ = find_base(str(base)).tensors


def test_weights_that_the_config_names(base, tmp_path):
    (base / SINGLE_FILE).rename(base / "mine.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    assert AutoModelForCausalLM.from_pretrained(base).num_parameters()
    write_checkpoint(find_base(str(base)), DUS, tmp_path / "out")
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "../mine.safetensors"}))
    with pytest.raises(CheckpointError, match="expected the name of a file"):
        _ = find_base(str(base)).tensors


OTHER = {
    "shards without an index": (["model-00001-of-00003.safetensors"], "has 1 of 3 shards .*00002-of-00003.*missing"),
    "all shards without an index": (
        ["model-00001-of-00001.safetensors"],
        "has 1 of 1 shards .*, but the index is missing",
    ),
    "ZeRO": (
        ["global_step9/zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py", "latest"],
        "DeepSpeed ZeRO.*zero_to_fp32.py DIR",
    ),
    "ZeRO with a useless pickle": (["global_step9/x.pt", "pytorch_model.bin"], "global_step9 .a DeepSpeed ZeRO"),
    "FSDP": (
        ["pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"],
        "sharded FSDP.*merge-sharded-fsdp-weights",
    ),
    "torch distributed": (["__0_0.distcp", ".metadata"], "__0_0.distcp .a sharded FSDP"),
    "adapter weights alone": (["adapter_model.safetensors"], "the weights of an adapter.*merge-lora"),
    "GGUF": (["model-Q4_K_M.gguf"], "model-Q4_K_M.gguf .GGUF, the format of llama.cpp"),
    "GGML": (["ggml-model-q4_0.bin"], "ggml-model-q4_0.bin .GGUF, the format of llama.cpp"),
    "Rust": (["rust_model.ot"], "rust_model.ot .the weights of another framework"),
    "Mistral's own": (["consolidated.safetensors", "params.json"], "publisher's own format.*transformers' format"),
    "Meta's own": (["consolidated.00.pth", "params.json"], "publisher's own format"),
    "another name": (
        ["weights.safetensors"],
        "weights.safetensors .safetensors with a file name.*rename it to model.safet",
    ),
    "pickles": (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickles, which can run code"),
    "TensorFlow": (["tf_model.h5"], "tf_model.h5 .the weights of another framework"),
    "checkpoints inside": (
        ["checkpoint-5/config.json", "checkpoint-10/config.json"],
        "subdirectory checkpoint-.* has a model's",
    ),
    "a trainer's leftovers": (
        ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"],
        "has only the files with which a trainer",
    ),
    "nothing": ([], "no weights; expected model.safetensors, or model.safetensors.index.json with its shards"),
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("with_config", [True, False])
def test_plan_and_upscale_report_the_same_error_for_a_folder_without_a_model(base, name, with_config):
    files, message = OTHER[name]
    (base / SINGLE_FILE).unlink()
    for file in files:
        (base / file).parent.mkdir(exist_ok=True)
        (base / file).write_bytes(b"x")
    if not with_config:
        (base / "config.json").unlink()
        message = message if files else "config.json: missing"
    with pytest.raises(CheckpointError, match=message) as of_upscale:
        _ = find_base(str(base)).tensors
    with pytest.raises(CheckpointError) as of_plan:
        plan_for_base(str(base), None, InitArgs(strategy="dus", drop_layers="2"))
    assert str(of_plan.value) == str(of_upscale.value)
    assert str(base) in str(of_plan.value)
    assert "\n" not in str(of_plan.value)


@pytest.mark.parametrize("lost", ["config only", "dangling link", "missing shard", "pointer"])
@pytest.mark.parametrize("cached", [True, False])
def test_what_a_download_left_out_is_fetched_by_a_command_that_the_error_names(sharded_base, tmp_path, lost, cached):
    folder = tmp_path / ("hub/models--org--name/snapshots/0a1b" if cached else "copy")
    shutil.copytree(sharded_base, folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    if lost == "pointer":
        shards[0].write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4976698672\n")
    else:
        for file in shards[: None if lost == "config only" else 1]:
            file.unlink()
    if lost in ("config only", "dangling link"):
        (folder / INDEX).unlink()
    if lost == "dangling link":
        shards[1].unlink()
        (folder / SINGLE_FILE).symlink_to("../../blobs/0c0d")
    fix = "hf download org/name --revision 0a1b" if cached else f"hf download REPO --local-dir {folder} "
    for act in (
        lambda: find_base(str(folder)).tensors,
        lambda: plan_for_base(str(folder), None, InitArgs(strategy="dus", drop_layers="2")),
    ):
        with pytest.raises(CheckpointError, match=rf"download.*: {fix}"):
            act()


@pytest.mark.parametrize("any_base", ["llama", "llama-sharded"], indirect=True)
def test_weights_without_a_config_are_not_called_something_else(any_base):
    (any_base / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json: missing; a base model has a config.json .*weights$"):
        find_base(str(any_base))


@pytest.mark.parametrize("name", [SINGLE_FILE, INDEX, "config.json", "tokenizer.json", "tokenizer.model"])
def test_git_lfs_pointers_are_refused(sharded_base, name):
    path = sharded_base / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4976698672\n")
    if name == SINGLE_FILE:
        (sharded_base / INDEX).unlink()
    for act in (
        lambda: find_base(str(sharded_base)).identity,
        lambda: plan_for_base(str(sharded_base), None, InitArgs(strategy="dus", drop_layers="2")),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: a git-lfs pointer of \d+ bytes.*run `git lfs pull`"):
            act()


@pytest.mark.parametrize("act", [find_base, lambda name: plan_for_base(name, None, InitArgs(strategy="dus"))])
def test_a_weight_file_in_place_of_its_folder_is_an_error(base, act):
    with pytest.raises(CheckpointError, match=rf"{SINGLE_FILE} is a file; expected a model directory .*such as {base}"):
        act(str(base / SINGLE_FILE))


@pytest.mark.parametrize(
    ("left", "message"), [([], "a LoRA adapter, not a model"), ([SINGLE_FILE], "next to a model's weights")]
)
def test_the_output_of_a_lora_run_is_refused(base, left, message):
    (base / "adapter_config.json").write_text("{}")
    if not left:
        (base / SINGLE_FILE).unlink()
    for act in (find_base, lambda name: plan_for_base(name, None, InitArgs(strategy="dus"))):
        with pytest.raises(CheckpointError, match=message):
            act(str(base))


def test_a_result_with_unloadable_tensor_names_is_written_again(base, tmp_path):
    """As version 1 made it: the wrapper's names were copied, and its marker says 1."""
    tensors = load_file(base / SINGLE_FILE)
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, base / SINGLE_FILE)
    made = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    good = (made / SINGLE_FILE).read_bytes()
    stale = {f"module.{name}": tensor for name, tensor in load_file(made / SINGLE_FILE).items()}
    save_file(stale, made / SINGLE_FILE)
    marker = json.loads((made / MARKER).read_text())
    marker["files"][SINGLE_FILE] = (made / SINGLE_FILE).stat().st_size
    (made / MARKER).write_text(json.dumps(marker | {"format_version": 1}))
    again = ensure_checkpoint(find_base(str(base)), DUS, tmp_path / "cache")
    assert (again / SINGLE_FILE).read_bytes() == good


def quantize(base, side):
    """As AutoGPTQ wrote it before transformers had ``quantization_config``; layer 3 is kept in full."""
    tensors = load_file(base / SINGLE_FILE)
    quantized = {name for name in tensors if name.endswith("_proj.weight") and ".3." not in name}
    parts = {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16, "g_idx": torch.int32}
    packed = {
        f"{name.removesuffix('weight')}{part}": torch.ones(4, dtype=dtype)
        for name in quantized
        for part, dtype in parts.items()
    }
    plain = {name: tensor for name, tensor in tensors.items() if name not in quantized}
    save_file(plain | packed, base / SINGLE_FILE, metadata={"format": "pt"})
    (base / "quantize_config.json").write_text(json.dumps(side))


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        ({"bits": 4, "desc_act": False}, None),
        (
            {"bits": 4, "modules_to_not_convert": ["model.layers.3"]},
            {"bits": 4, "modules_to_not_convert": ["model.layers.3", "model.layers.7"]},
        ),
    ],
)
def test_an_old_quantized_base_keeps_its_side_file_which_follows_the_plan(base, tmp_path, side, expected):
    quantize(base, side)
    write_checkpoint(find_base(str(base)), DUS, tmp_path / "out")
    written = tmp_path / "out" / "quantize_config.json"
    if expected is None:
        assert written.read_bytes() == (base / "quantize_config.json").read_bytes()
    else:
        assert json.loads(written.read_text()) == expected
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    verify_checkpoint(tmp_path / "out", str(base))
    written.write_text(written.read_text().replace("4", "8"))
    with pytest.raises(CheckpointError, match=r"quantize_config\.json"):
        verify_checkpoint(tmp_path / "out", str(base))


def test_quantized_weights_without_a_word_on_how_are_refused_by_plan_too(base):
    quantize(base, {})
    (base / "quantize_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"part of a quantized weight, but config.json has no quant"):
        plan_for_base(str(base), None, InitArgs(strategy="dus", drop_layers="2"))


def test_what_zero_3_leaves_where_it_does_not_gather(base):
    hulls = {name: torch.zeros(0) for name in load_file(base / SINGLE_FILE)}
    save_file(hulls, base / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has the shape \[0\] in the weight files.*zero_to_fp32.py"):
        _ = find_base(str(base)).tensors
    save_file({"model.norm.weight": torch.zeros(32)}, base / SINGLE_FILE, metadata={"format": "pt"})
    (base / "global_step10").mkdir()
    with pytest.raises(CheckpointError, match=r"there are no layers in the weight files.*zero_to_fp32.py"):
        _ = find_base(str(base)).tensors


def test_one_weight_that_was_not_gathered_is_enough(base):
    tensors = load_file(base / SINGLE_FILE)
    save_file(tensors | {"model.embed_tokens.weight": torch.zeros(0)}, base / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'model.embed_tokens.weight' has the shape \[0\].*zero_to_fp32.py"):
        _ = find_base(str(base)).tensors


def test_layers_with_unknown_module_names_and_shapes_are_rejected(base):
    """transformers would load random weights for them, and say so in a warning alone."""
    config = json.loads((base / "config.json").read_text()) | {"model_type": "qwen2", "rope_parameters": None}
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
    args = InitArgs(strategy="dus", drop_layers="2")
    plan_for_base(str(base), None, args)
    renamed = {name.replace("self_attn", "attention"): tensor for name, tensor in load_file(base / SINGLE_FILE).items()}
    save_file(renamed, base / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layer 0 has no tensor of self_attn.o_proj, .*'qwen2'"):
        plan_for_base(str(base), None, args)
