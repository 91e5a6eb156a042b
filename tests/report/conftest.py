"""Tiny models, a tokenizer and a report to draw, made here: no network, no files from elsewhere."""

import json
import math
from pathlib import Path

import pytest
import yaml

from solar_plugins.report.content import Conditions, Report
from solar_plugins.report.loss_curve import LossCurve, LossPoint
from solar_plugins.report.measure import Hardware, Loss, MeasuredModel
from solar_plugins.upscaling.layer_plan import LayerPlan

TEXTS = [
    f"Once upon a time there were {number} little pigs who built a house of {thing}, and the wolf came by." * 3
    for number, thing in enumerate(["straw", "sticks", "bricks", "glass", "sand"])
]


@pytest.fixture(scope="session")
def texts():
    """A few texts, all long enough for several windows."""
    return TEXTS


def make_tokenizer(*, adds_bos):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer that begins texts with <s>, as Llama's and Mistral's do."""
    return make_tokenizer(adds_bos=True)


@pytest.fixture(scope="session")
def plain_tokenizer():
    """A tokenizer that has <s> but does not use it, as SmolLM2's."""
    return make_tokenizer(adds_bos=False)


def tiny_llama(num_layers):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,  # Wide, so that different inputs and depths give clearly different outputs.
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def llama():
    """A random Llama of 4 layers. Nobody changes it."""
    return tiny_llama(num_layers=4)


@pytest.fixture
def own_llama():
    """A random Llama of 1 layer that a test may change."""
    return tiny_llama(num_layers=1)


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory, llama, tokenizer):
    """A base of 4 layers on the disk."""
    directory = tmp_path_factory.mktemp("models") / "tiny-base"
    llama.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def report():
    """A report with figures made up. Its texts try to break out of HTML and of the terminal."""
    prompts = ("The <b>wall</b> & the", "[red]1, 2,[/red]")

    def model(name, num_layers, nats, continuations):
        loss = Loss(tuple(100 * (nats + wobble) for wobble in (-0.1, 0.0, 0.1)), (100, 100, 100))
        return MeasuredModel(name, num_layers, num_layers * 1_000_000, loss, continuations, 2.5)

    return Report(
        base_name="lab/tiny-<base>",
        plan=LayerPlan.from_sources(12, [*range(8), *range(4, 12)]),
        base=model("base", 12, 2.5, ("<script>alert(1)</script>", "4, 8")),
        upscaled=model("up-scaled", 16, 3.25, ("\x1b[31mthe the", "")),
        trained=model("trained", 16, 2.625, ("garden & gate", "4,\n8, [bold]16")),
        prompts=prompts,
        curve=LossCurve(
            train=tuple(LossPoint(step, 2.6 + math.exp(-step / 10)) for step in range(1, 41)),
            held_out=(LossPoint(0, 3.5), LossPoint(40, 2.7)),
            last_step=40,
            planned_steps=40,
            num_not_finite=0,
        ),
        conditions=Conditions(
            held_out="data/held_out.jsonl",
            num_texts=1234,
            sequence_tokens=101,
            max_new_tokens=48,
            hardware=Hardware("cpu", "float32"),
            versions={"solar_plugins": "0.1.0"},
            date="2026-01-02 03:04 UTC",
        ),
        recipe_path=Path("recipes/tiny.yml"),
        recipe_text="base_model: lab/tiny  # <i>not a tag</i>\n",
        html=Path("out/report.html"),
    )


@pytest.fixture
def trained_recipe(tmp_path, base_directory):
    """The recipe of a finished run, with its held-out text, and an output_dir whose model is not the up-scaled one."""
    import torch
    from transformers import AutoModelForCausalLM

    from solar_plugins.upscaling.base_model import find_base
    from solar_plugins.upscaling.checkpoint import ensure_checkpoint

    plan = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])  # What dus makes of 4 layers with m = 1.
    upscaled = ensure_checkpoint(find_base(str(base_directory)), plan, tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(upscaled)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    output_dir = tmp_path / "trained"
    model.save_pretrained(output_dir)
    checkpoint = output_dir / "checkpoint-2"
    checkpoint.mkdir()
    history = [{"step": 1, "loss": 6.0}, {"step": 2, "loss": 5.5}, {"step": 2, "eval_loss": 5.75}]
    state = {"global_step": 2, "max_steps": 2, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    recipe = {
        "base_model": str(base_directory),
        "solar": {"init": {"strategy": "dus", "drop_layers": 1}, "cache_dir": str(tmp_path / "cache")},
        "test_datasets": [{"path": str(held_out), "ds_type": "json", "type": "completion"}],
        "output_dir": str(output_dir),
        "sequence_len": 32,
    }
    path = tmp_path / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    return path
