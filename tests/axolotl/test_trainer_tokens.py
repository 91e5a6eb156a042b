"""The tokens of a pair for `sdpo-order` and `report` are those that Axolotl's trainers train on."""

import json
import shutil
from pathlib import Path

import pytest
from commands import run, warm

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters import preference_formatters
from solar_plugins.data.row_encoder import RowEncoder

pytestmark = pytest.mark.slow

ANSWERS = [
    "for i in range(3):\n    print(i)\n\n\tdone",
    "Über 12,345.67 € — 日本語 😀!",
    "### Assistant:\nMe.\n\n### User:\nWho?",
    "\u0301combining, \ufeffmark, 1\ufe0f\u20e3",
    "(x) y",
    ": b",
    "-5",
    '"quoted"',
    "🙂🙂 end",
    "\u200bzero width",
    "Spell <|im_end|>",
    "b",
]
ROWS = [
    {
        "instruction": f"{number}. {ANSWERS[-number]}? " * (1 if number else 9),
        "completions": [{"response": f"{answer}{extra}", "overall_score": extra} for extra in range(4)],
    }
    for number, answer in enumerate(ANSWERS)
]
"""The first prompt is longer than `CUT`. Which completion is rejected is chosen by the seed and the row's number."""

CUT = 30
RECIPE = """\
base_model: {base}
plugins: [solar_plugins.SolarPlugin]
rl: {method}
datasets:
  - {{path: rows.jsonl, ds_type: json, split: train, type: solar_plugins.ultrafeedback_scores}}
special_tokens: {{pad_token: </s>}}
dataset_prepared_path: prepared
dataset_num_proc: 1
output_dir: out
sequence_len: 256
micro_batch_size: 2
gradient_accumulation_steps: 1
max_steps: 2
learning_rate: 1.0e-4
optimizer: adamw_torch
lr_scheduler: cosine
bf16: false
fp16: false
tf32: false
{keys}
"""
CASES = {
    ("bos", "dpo"): "seed: 3",
    ("bos", "kto"): "seed: 3\nremove_unused_columns: false",
    ("bos", "orpo"): "seed: 3",
    ("bos", "simpo"): "seed: 3\nsimpo_gamma: 0.5",
    ("plain", "dpo"): "",
    ("plain", "orpo"): "",
}


@pytest.fixture(scope="module")
def tokenizers(tokenizer_directories):
    from transformers import AutoTokenizer

    return {name: AutoTokenizer.from_pretrained(path) for name, path in tokenizer_directories.items()}


@pytest.fixture(scope="module")
def tokenizer_directories(sentencepiece_tokenizer, tmp_path_factory):
    """SentencePiece that prepends `<s>`, as Mistral's; byte-level BPE that has `<s>` but does not prepend it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    core.train_from_iterator([*ANSWERS, "### System:\n\n### User:\n\n### Assistant:\n" * 9], trainer)
    plain = tmp_path_factory.mktemp("plain")
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>").save_pretrained(plain)
    return {"bos": sentencepiece_tokenizer, "plain": plain}


@pytest.fixture(scope="module")
def trained(tokenizer_directories, tiny_model, tmp_path_factory):
    """The batches of each trainer."""
    folder = tmp_path_factory.mktemp("trainers")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, path in tokenizer_directories.items():
        tiny_model(folder / name, dtype="float32", vocab_size=32000)
        shutil.copytree(path, folder / name, dirs_exist_ok=True)
    recipes = []
    for (base, method), keys in CASES.items():
        recipes.append(folder / (f"{base}-{method}.{CUT}.yml" if method == "dpo" else f"{base}-{method}.yml"))
        recipes[-1].write_text(RECIPE.format(base=base, method=method, keys=keys))
    script = Path(__file__).with_name("trainer_batches.py")
    result = run(warm("python", script, *recipes))
    assert result.returncode == 0, result.stderr[-4000:]
    return dict(zip(CASES, map(json.loads, result.stdout.splitlines()), strict=True))


def encoded(tokenizer, seed, **options):
    """Ids of all valid answers, each with its label mask, in a fixed order."""
    encoder = RowEncoder(
        preference_formatters()["ultrafeedback_scores"], make_encoder(tokenizer, "test"), seed=seed, **options
    )
    pairs = [encoder.pair(row, index) for index, row in enumerate(ROWS)]
    tokens = [answer.tokens for pair in pairs if not pair.too_long for answer in (pair.chosen, pair.rejected)]
    return sorted([list(ids), [label >= 0 for label in labels]] for ids, labels in tokens)


@pytest.mark.parametrize(
    ("base", "method", "seed"),
    [("bos", "dpo", 3), ("bos", "kto", 3), ("bos", "orpo", 3), ("bos", "simpo", 3), ("plain", "dpo", 42)],
)
def test_trainers_train_on_the_same_tokens(trained, tokenizers, base, method, seed):
    expected = encoded(tokenizers[base], seed, max_length=256)
    assert len(expected) == 2 * len(ROWS)
    assert expected != encoded(tokenizers[base], seed + 1, max_length=256), "the seed matters"
    assert sorted(trained[base, method]["whole"]) == expected


@pytest.mark.parametrize(("base", "seed"), [("bos", 3), ("plain", 42)])
def test_trl_truncates_answers_at_the_same_token(trained, tokenizers, base, seed):
    expected = encoded(tokenizers[base], seed, max_length=CUT, truncate=True)
    assert 0 < len(expected) < 2 * len(ROWS)
    assert any(len(ids) == CUT for ids, _ in expected)
    assert sorted(trained[base, "dpo"]["cut"]) == expected


def test_orpo_prepends_bos_although_the_tokenizer_does_not(trained, tokenizers):
    """A known difference (data/row_encoder.py); TRL's SimPO shares the code."""
    start = tokenizers["plain"].bos_token_id
    expected = [[[start, *ids], [False, *mask]] for ids, mask in encoded(tokenizers["plain"], 42, max_length=256)]
    assert sorted(trained["plain", "orpo"]["whole"]) == sorted(expected)
