import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from solar_plugins import SolarPlugin
from solar_plugins.axolotl_adapter.merged_model import finish_merged_model
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.provenance import provenance

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
GROWN = provenance("org/base", "0" * 40, PLAN)
TEMPLATE = "{{ 'SOLAR' }}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer with five words, and with a SentencePiece model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    (folder / "tokenizer.model").write_text("pieces")
    return folder


@pytest.fixture
def folders(tmp_path, tokenizer):
    """``adapter`` and ``merged`` as Axolotl writes them: the second has the small files of an upscaled base."""
    adapter, merged = tmp_path / "out", tmp_path / "out" / "merged"
    shutil.copytree(tokenizer, merged)
    write(merged / "config.json", {"model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2} | GROWN)
    write(merged / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.5})
    (merged / "chat_template.jinja").write_text("the base's")
    (merged / "additional_chat_templates").mkdir()
    (merged / "additional_chat_templates" / "old.jinja").write_text("the base's")
    (merged / "LICENSE").write_text("mit")
    return adapter, merged


def write(path, content):
    path.write_text(json.dumps(content))


def read(path):
    return json.loads(path.read_text())


def train(folder, source, *, end=None, template=TEMPLATE, **options):
    """The tokenizer that a run saves."""
    made = AutoTokenizer.from_pretrained(source)
    if end:
        made.add_special_tokens({"eos_token": end})
    made.chat_template = template
    made.save_pretrained(folder, **options)
    return AutoTokenizer.from_pretrained(folder)


def finish(folders, *, jinja=True):
    finish_merged_model(*folders, save_jinja_files=jinja, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(folders[1])


@pytest.mark.parametrize("end", [None, "<|im_end|>"])
@pytest.mark.parametrize("jinja", [True, False])
@pytest.mark.parametrize("template", [TEMPLATE, {"default": "D", "tool_use": "T"}])
def test_the_merged_tokenizer_is_the_trained_one(folders, tokenizer, end, jinja, template):
    trained = train(folders[0], tokenizer, end=end, template=template, save_jinja_files=jinja)
    merged = finish(folders, jinja=jinja)
    assert merged.chat_template == trained.chat_template == template
    assert merged.get_vocab() == trained.get_vocab()
    assert (len(merged), merged.eos_token_id) == ((6, 5) if end else (5, 2))
    assert merged("a </s> b").input_ids == trained("a </s> b").input_ids
    assert not (folders[1] / "tokenizer.model").exists(), "llama.cpp would read it, without the new token"
    assert (folders[1] / "LICENSE").exists()


def test_a_new_eos_token_is_in_the_configs_and_the_old_one_still_ends_generation(folders, tokenizer):
    train(folders[0], tokenizer, end="<|im_end|>")
    finish(folders)
    config, generation = read(folders[1] / "config.json"), read(folders[1] / "generation_config.json")
    assert (config["eos_token_id"], config["bos_token_id"]) == (5, 1)
    assert config["solar_plugins"] == GROWN["solar_plugins"]
    assert generation["eos_token_id"] == [5, 2]
    assert generation["temperature"] == 0.5


def test_the_ids_of_a_multimodal_model_are_in_its_text_config(folders, tokenizer):
    nested = {"model_type": "gemma3", "eos_token_id": [2, 7], "text_config": {"eos_token_id": [2, 7]}}
    write(folders[1] / "config.json", nested)
    (folders[1] / "generation_config.json").unlink()
    train(folders[0], tokenizer, end="<|im_end|>")
    finish(folders)
    config = read(folders[1] / "config.json")
    assert config["eos_token_id"] == config["text_config"]["eos_token_id"] == [5, 2, 7]
    assert not (folders[1] / "generation_config.json").exists()


def test_an_adapter_without_a_tokenizer_gives_a_warning(folders, caplog):
    finish(folders)
    assert f"{folders[0]}: has no tokenizer_config.json" in caplog.text
    assert f"merged model in {folders[1]} keeps the tokenizer" in caplog.text
    assert (folders[1] / "tokenizer.model").exists()


def test_a_recipe_without_this_package_changes_nothing(folders):
    write(folders[1] / "config.json", {"model_type": "mistral"})
    before = {path: path.read_bytes() for path in folders[1].rglob("*") if path.is_file()}
    SolarPlugin().post_lora_merge({"base_model": "x"}, str(folders[0]), str(folders[1]))
    assert {path: path.read_bytes() for path in folders[1].rglob("*") if path.is_file()} == before
