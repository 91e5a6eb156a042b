import yaml

from solar_plugins.upscaling.layer_plan import Donor, LayerPlan, PlannedLayer
from solar_plugins.upscaling.model_card import model_card

SOLAR = LayerPlan.from_sources(32, [*range(24), *range(8, 32)])


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_links_the_base_and_takes_its_license():
    card = model_card("org/base", SOLAR, "---\nlicense: mit\nlanguage: [en]\npipeline_tag: x\n---\ntext", on_hub=True)
    assert front_matter(card) == {
        "license": "mit",
        "language": ["en"],
        "base_model": ["org/base"],
        "library_name": "transformers",
        "tags": ["depth-up-scaling", "solar_plugins"],
    }


def test_a_local_base_is_not_linked():
    assert "base_model" not in front_matter(model_card("base", SOLAR, None, on_hub=False))


def test_all_parents_are_linked():
    layers = tuple(PlannedLayer(0, model=model) for model in (0, 1, 2, 3))
    donors = (Donor("org/b", "a" * 40, 1), Donor("folder", None, 1), Donor("org/b", "b" * 40, 1))
    card = model_card("org/base", LayerPlan(1, layers, donors), None, on_hub=True)
    assert front_matter(card)["base_model"] == ["org/base", "org/b"]
    assert front_matter(card)["base_model_relation"] == "merge"
    assert "| 1 to 1 | org/b@aaaaaaaaaaaa 0 to 0 | copy |\n| 2 to 2 | folder 0 to 0 | copy |" in card
    assert "- below layer 2: layer 0 of org/b@aaaaaaaaaaaa feeds layer 0 of folder, another model" in card
    local = front_matter(model_card("base", LayerPlan(1, layers[:2], donors[1:2]), None, on_hub=False))
    assert not {"base_model", "base_model_relation"} & local.keys()


def test_broken_front_matter_of_the_base_is_ignored():
    for broken in ("---\n: : [\n---\n", "---\n- a\n---\n", "no front matter", "---\nunfinished"):
        assert "license" not in front_matter(model_card("base", SOLAR, broken, on_hub=False))


def test_what_was_done_is_said_in_words():
    card = model_card("org/base", SOLAR, None, on_hub=True)
    assert "| 0 to 23 | 0 to 23 | copy |\n| 24 to 47 | 8 to 31 | copy |" in card
    assert "- below layer 24: layer 23 feeds layer 8, distance 15" in card
    assert "has not been trained" in card


def test_a_card_without_seams_says_so():
    plan = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(1, "identity")))
    assert "- none\n" in model_card("b", plan, None, on_hub=False)
