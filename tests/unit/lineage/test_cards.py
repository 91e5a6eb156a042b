import json
import re

import pytest
from lineages import BASE, MIT, ON_HUB, PLAN, SFT, TUNED, UPSCALE, lineage

from solar_plugins.lineage import License, Source, Stage, card
from solar_plugins.lineage.cards import is_made, license_warning
from solar_plugins.storage.cards import split_card
from solar_plugins.upscaling.model_card import model_card

TUNED_CARD = card(lineage(UPSCALE, SFT))
LORA = Stage(kind="sft", adapter="lora", result=Source(name="out"), sources=SFT.sources)
TRAINER = """---
tags: [generated_from_trainer]
datasets: [train.jsonl]
model-index: [{name: home/me/out, results: []}]
---
<!-- This model card has been generated automatically according to the information the Trainer had access to. -->
# home/me/out

This model was trained from scratch on the train.jsonl dataset.
It achieves the following results on the evaluation set:
- Loss: 1.5

## Model description

More information needed

## Training procedure

### Training hyperparameters

- learning_rate: 0.1, /home/me/zero3.json

### Training results

| Step | Loss |
|---|---|
| 1 | 2 |
"""


def front(text):
    return split_card(text)[0]


def test_the_metadata_of_a_trained_model():
    assert front(TUNED_CARD) == {
        "license": "mit",
        "base_model": ["org/base"],
        "base_model_relation": "finetune",
        "datasets": ["org/rows"],
        "library_name": "transformers",
        "tags": ["axolotl", "depth-up-scaling", "solar_plugins"],
    }


def test_the_plan_and_the_stages_are_in_words_and_in_json():
    assert "# solar_sft" in TUNED_CARD
    assert "| 3 to 5 | 1 to 3 | copy |" in TUNED_CARD
    assert json.loads(re.search(r"```json\n(.*)\n```", TUNED_CARD)[1]) == PLAN.to_dict()
    stages = [line for line in TUNED_CARD.splitlines() if re.match(r"\d\. ", line)]
    assert len(stages) == 2
    assert "[org/base](https://huggingface.co/org/base)" in stages[0]
    assert "[org/rows](https://huggingface.co/datasets/org/rows) and `rows.jsonl`" in stages[1]


def test_no_local_path_is_in_it():
    assert "outputs/" not in TUNED_CARD
    assert "data/rows" not in TUNED_CARD


@pytest.mark.parametrize(
    ("stages", "relation", "library"),
    [
        ((UPSCALE, LORA), "adapter", "peft"),
        ((UPSCALE, LORA, Stage(kind="merge_lora", adapter="lora", result=TUNED)), "finetune", "transformers"),
        ((UPSCALE, SFT, Stage(kind="merge", result=TUNED, sources=(TUNED,))), "merge", "transformers"),
    ],
)
def test_the_relation_to_the_base(stages, relation, library):
    found = front(card(lineage(*stages)))
    assert (found["base_model_relation"], found["library_name"]) == (relation, library)


def test_an_adapter_says_which_model_it_fits():
    assert "This is an adapter" in card(lineage(UPSCALE, LORA))
    assert "`solar_dus`" in card(lineage(UPSCALE, LORA)).partition("This is an adapter")[2]


def test_a_model_that_is_not_trained_says_so():
    assert "has not been trained" in card(lineage(UPSCALE))
    assert "has not been trained" not in TUNED_CARD
    assert "not recorded" in card(lineage(UPSCALE, earlier_unknown=True))


def test_a_base_without_a_hub_id_is_named_in_words_only():
    local = Source(name="base")
    text = card(lineage(Stage(kind="upscale", result=TUNED, sources=(local,)), bases=(local,)))
    assert not {"base_model", "base_model_relation"} & front(text).keys()
    assert "`base`" in text


def test_a_missing_license_is_a_warning():
    found = lineage(UPSCALE, licenses=(), unlicensed=("org/base",))
    assert "org/base" in license_warning(found)
    assert "Warning" in card(found)
    assert "license" not in front(card(found))
    assert license_warning(lineage(UPSCALE)) is None
    assert "Warning" not in TUNED_CARD


def test_licenses_that_differ_are_a_warning_and_none_is_stated():
    found = lineage(UPSCALE, licenses=(MIT, License(id="other", name="own", link="https://x/y", source="org/b")))
    for fact in ("mit", "own", "org/b"):
        assert fact in license_warning(found)
    assert "license" not in front(card(found))
    assert "[text](https://x/y)" in card(found)


def test_name_and_link_of_a_license_are_inherited():
    found = front(card(lineage(UPSCALE, licenses=(License(id="other", name="own", link="LICENSE", source="org/b"),))))
    assert (found["license"], found["license_name"], found["license_link"]) == ("other", "own", "LICENSE")


def test_a_link_to_a_file_of_a_base_on_the_hub_becomes_an_address():
    license = License(id="other", link="LICENSE", source="org/base")
    link = front(card(lineage(UPSCALE, licenses=(license,))))["license_link"]
    assert link == f"https://huggingface.co/org/base/blob/{BASE.revision}/LICENSE"
    for other in (license.model_copy(update={"link": "https://x/y"}), license.model_copy(update={"source": "folder"})):
        assert front(card(lineage(UPSCALE, licenses=(other,))))["license_link"] == other.link


def test_the_card_of_an_author_stays_and_its_metadata_win():
    own = (
        "---\nlicense: apache-2.0\ntags: [mine]\ndatasets: [me/rows]\nmodel-index: [{name: x}]\n---\n# Mine\n\nGood.\n"
    )
    text = card(lineage(UPSCALE, SFT), own)
    again = card(lineage(UPSCALE, SFT), text, TRAINER)
    for one in (text, again):
        found = front(one)
        assert found["license"] == "apache-2.0"
        assert {"mine", "solar_plugins"} <= set(found["tags"])
        assert found["datasets"] == ["org/rows", "me/rows"]
        assert found["model-index"] == [{"name": "x"}]
        assert found["base_model"] == ["org/base"]
        assert split_card(one)[1].startswith("# Mine\n\nGood.\n")
        assert one.count("Good.") == one.count("## Stages") == 1
        assert "# solar_sft" not in one
        assert "Warning" not in one


def test_what_an_author_adds_below_stays():
    text = card(lineage(UPSCALE), TUNED_CARD + "\nMy words.\n")
    assert text.endswith("\n\nMy words.\n")
    assert "solar_sft" not in text


@pytest.mark.parametrize("old", ["", TUNED_CARD, "# Mine\n\nText.\n", TRAINER])
def test_writing_it_again_changes_nothing(old):
    once = card(lineage(UPSCALE, SFT), old)
    assert card(lineage(UPSCALE, SFT), once) == once


@pytest.mark.parametrize("arguments", [("", TRAINER), (TRAINER,)])
def test_of_a_trainers_card_the_tables_are_kept(arguments):
    text = card(lineage(UPSCALE, SFT), *arguments)
    for fact in ("- Loss: 1.5", "- learning_rate: 0.1, zero3.json", "| 1 | 2 |"):
        assert fact in text
    for wrong in ("from scratch", "More information", "home/me", "train.jsonl"):
        assert wrong not in text
    assert "generated_from_trainer" in front(text)["tags"]
    assert front(text)["base_model"] == ["org/base"]
    assert "model-index" not in front(text)


def test_the_tags_of_a_trainer_without_its_paths():
    made = "---\ntags: ['base_model:adapter:/cache/x', trl, dpo]\nbase_model: /cache/x\n---\n"
    text = card(lineage(UPSCALE, LORA), "", made)
    assert {"trl", "dpo", "lora"} <= set(front(text)["tags"])
    assert "cache" not in text


def test_cards_of_tools_are_recognized():
    assert is_made(TRAINER)
    assert is_made(model_card("org/base", PLAN, None, on_hub=True))
    assert is_made(TUNED_CARD)
    assert not is_made("# Mine")


def test_hostile_names_and_recipes_stay_text():
    name = "x`<script>alert(1)</script>](http://evil)"
    recipe = "a: '```\n<!-- solar_plugins: end -->\n````'\n"
    stage = SFT.model_copy(update={"result": Source(name=name), "datasets": (Source(name=name),), "recipe": recipe})
    hostile = lineage(UPSCALE, stage, licenses=(License(id="mit", link="javascript:alert(1)", source=name),))
    text = card(hostile)
    assert text.count("<!-- solar_plugins: end -->") == 1
    assert "`````yaml" in text
    assert "](javascript" not in text
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert "<script>" not in outside
    assert "](http://evil" not in outside
    assert card(hostile, text) == text


def test_hub_ids_are_links_with_their_revision():
    assert BASE.revision[:12] in TUNED_CARD
    assert BASE.revision not in TUNED_CARD
    assert f"]({'https://huggingface.co/datasets/'}{ON_HUB.name})" in TUNED_CARD
