import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from solar_plugins.errors import CheckpointError
from solar_plugins.evaluation.measure import continuation
from solar_plugins.evaluation.models import load_model, load_tokenizer

pytestmark = pytest.mark.slow


def test_the_generation_config_of_a_checkpoint_is_ignored(base_directory, llama, tokenizer, tmp_path):
    # Axolotl saves do_sample: true with every model.
    shutil.copytree(base_directory, tmp_path / "sampling")
    settings = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "num_beams": 3, "max_length": 3}
    (tmp_path / "sampling" / "generation_config.json").write_text(json.dumps(settings))

    model = load_model(tmp_path / "sampling")

    assert continuation(model, tokenizer, "Once upon", 8) == continuation(llama, tokenizer, "Once upon", 8)


def test_a_missing_tensor_is_rejected(base_directory, tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    tensors = load_file(base_directory / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"1 tensors .* such as model.layers.2.mlp.down_proj.weight"):
        load_model(tmp_path)


def test_a_tensor_of_another_shape_is_named(base_directory, tmp_path, llama):
    llama.config.save_pretrained(tmp_path)
    tensors = load_file(base_directory / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.zeros(16, 8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match=r"1 tensors .* shape, such as .*model.layers.2.mlp.down_proj"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model.safetensors", b"cut", "header"),
        ("config.json", b'{"architectures": ["LlamaForCausalLM"]}', "model_type"),
        ("config.json", b"{", "config.json"),
    ],
)
def test_a_damaged_model_is_named(base_directory, tmp_path, file, content, reason):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((base_directory / name).read_bytes())
    (tmp_path / file).write_bytes(content)

    with pytest.raises(CheckpointError, match=rf"the model cannot be loaded \(.*{reason}.*\); expected config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_rejected(base_directory, tmp_path, name):
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((base_directory / file).read_bytes())
    (tmp_path / name).write_text("[]")

    with pytest.raises(CheckpointError, match=r"the tokenizer cannot be read .* copy them"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_rejected(tmp_path, llama):
    llama.config.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)
