"""Tiny models that the tests make, and a process environment without network and telemetry."""

import json
import os
import shutil
from pathlib import Path

import commands
import pytest
import warm_server
import yaml
from stand_in_hub import stand_in_hub

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: more threads only wait for each other

REPOSITORY = Path(__file__).parent.parent
READ_AT_IMPORT = {name: os.environ.get(name) for name in warm_server.READ_AT_IMPORT}
TINY = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def pytest_collection_modifyitems(items):
    """Long files come first: the workers take files in this order, and the short ones fill the gaps."""
    long = {item.path for item in items if item.get_closest_marker("slow") or "decoders" in item.path.parts}
    items.sort(key=lambda item: item.path not in long)


def make_model(directory, kind="llama", max_shard_size="5GB", dtype="bfloat16", seed=0, **config):
    """A random model with norms and biases away from their initial values, so that swapped layers are detected."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(TINY | config)))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (1.0 if parameter.dim() == 1 else 0.0)
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    return Path(directory)


@pytest.fixture(autouse=True)
def schemas_from_the_warm_server(monkeypatch):
    """The schemas of Axolotl, whose imports take 10 s; `solar recipes check` as a command starts its own process."""
    from solar_plugins.sharing import schemas

    asked = schemas.command

    def command():
        unchanged = all(os.environ.get(name) == value for name, value in READ_AT_IMPORT.items())
        return commands.warm("python", "-m", schemas.__name__) if unchanged else asked()

    monkeypatch.setattr(schemas, "command", command)


@pytest.fixture(scope="session")
def tiny_model():
    """`make_model`."""
    return make_model


@pytest.fixture(scope="session")
def made_bases(tmp_path_factory):
    """One of each kind of tiny checkpoint, made once; tests get copies."""
    top = tmp_path_factory.mktemp("made")
    make_model(top / "llama")
    make_model(top / "llama-sharded", max_shard_size="30KB")
    make_model(top / "llama-tied", tie_word_embeddings=True)
    make_model(top / "llama-biased", attention_bias=True, mlp_bias=True)
    make_model(top / "mistral", kind="mistral", dtype="float32", head_dim=16)
    return top


@pytest.fixture(params=["llama", "llama-sharded", "llama-tied", "llama-biased", "mistral"])
def any_base(request, made_bases, tmp_path):
    """Each kind of tiny base in turn."""
    return Path(shutil.copytree(made_bases / request.param, tmp_path / "base"))


@pytest.fixture
def base(made_bases, tmp_path):
    """A Llama-type base of 8 layers in one file."""
    return Path(shutil.copytree(made_bases / "llama", tmp_path / "base"))


@pytest.fixture
def sharded_base(made_bases, tmp_path):
    """The same weights in several shards with an index."""
    return Path(shutil.copytree(made_bases / "llama-sharded", tmp_path / "base"))


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(tmp_path_factory):
    """Mistral 7B's SentencePiece tokenizer of 32,000 pieces, from the package mistral_common (Apache-2.0)."""
    from importlib.resources import files

    from transformers import LlamaTokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(files("mistral_common") / "data" / "tokenizer.model.v1", directory / "tokenizer.model")
    LlamaTokenizer.from_pretrained(directory, add_bos_token=True).save_pretrained(directory)
    return directory


@pytest.fixture
def training_folder(tmp_path, sentencepiece_tokenizer):
    """A folder with a Mistral-type base, its tokenizer, text, and `recipe.yml`, which a CPU trains in seconds."""
    make_model(tmp_path / "base", kind="mistral", dtype="float32", vocab_size=32000)
    for path in sentencepiece_tokenizer.iterdir():
        shutil.copy(path, tmp_path / "base")
    rows = [{"text": f"The number {i} is followed by the number {i + 1}. " * 20} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yml").write_text(TINY_RECIPE)
    return tmp_path


TINY_RECIPE = """\
base_model: base
plugins: [solar_plugins.SolarPlugin]
solar:
  init: {strategy: dus, drop_layers: 2}
  cache_dir: cache
datasets:
  - {path: train.jsonl, ds_type: json, type: completion}
dataset_prepared_path: prepared
output_dir: out
sequence_len: 128
micro_batch_size: 2
gradient_accumulation_steps: 1
max_steps: 2
learning_rate: 1.0e-4
optimizer: adamw_torch
lr_scheduler: cosine
bf16: false
fp16: false
tf32: false
seed: 1
logging_steps: 1
dataset_num_proc: 1
"""


@pytest.fixture(scope="session")
def tiny_recipe():
    """The keys of the recipe in `training_folder`."""
    return yaml.safe_load(TINY_RECIPE)


@pytest.fixture
def run():
    """`commands.run` with a program of the virtual environment, in an interpreter of its own."""
    return lambda *command, **options: commands.run(commands.cold(*command), **options)


@pytest.fixture
def run_warm():
    """The same for ``python``, Axolotl's and mergekit's programs, in a process that has them imported already."""
    return lambda *command, **options: commands.run(commands.warm(*command), **options)


@pytest.fixture
def hub():
    """A `StandInHub`; use it from this process with ``hub.use(monkeypatch, home)``."""
    with stand_in_hub() as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_left_running():
    yield
    commands.end_all()
