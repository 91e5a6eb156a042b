import pytest

from solar_plugins.errors import ArgsError, PluginError
from solar_plugins.evaluation.probe.candidates import every_repeat, read_candidates, repeat
from solar_plugins.solar_block import InitArgs
from solar_plugins.upscaling.strategies import plan_of


def test_every_repeat_is_the_plan_of_its_block():
    """What is pasted into a recipe makes the plan that was measured."""
    found = every_repeat(5)
    assert len(found) == 15
    assert len({str(one.plan) for one in found}) == 15
    for one in found:
        assert plan_of(InitArgs.model_validate(one.init), 5) == one.plan
        assert one.added == one.block[1] - one.block[0]
    assert [one.init for one in found if one.is_dus] == [{"strategy": "dus", "drop_layers": m} for m in range(3)]


def test_plans_of_a_file(tmp_path):
    path = tmp_path / "plans.yml"
    path.write_text(
        "- {strategy: dus, drop_layers: 2}\n"
        "- {strategy: slices, slices: [[0, 5], [1, 8]]}\n"
        "- {strategy: stack, times: 2}\n"
    )
    dus, slices, stack = read_candidates(path, 8)
    assert dus == repeat(8, 2, 6)
    assert slices.plan == repeat(8, 1, 5).plan
    assert slices.block == (1, 5)
    assert not slices.is_dus
    assert stack.block == (0, 8), "the whole base once more"


def test_a_plan_with_another_initializer(tmp_path):
    path = tmp_path / "plans.yml"
    path.write_text("- {strategy: dus, drop_layers: 2, duplicates: {initializer: scaled, factor: 0.25}}\n")
    (one,) = read_candidates(path, 8)
    assert str(one.plan) == "8 -> 12 layers: [0..5] + [2..5] as scaled (factor 0.25) + [6..7]"
    assert plan_of(InitArgs.model_validate(one.init), 8) == one.plan, "what is pasted makes it again"
    assert not one.is_dus, "it is compared with the plain one"


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("", ArgsError, "expected a list of plans"),
        ("strategy: dus", ArgsError, "expected a list of plans"),
        ("- [", ArgsError, "not valid YAML"),
        ("- dus", ArgsError, "plan 1: 'dus' is not a plan; expected a map with a strategy"),
        ("- {drop_layers: 2}", ArgsError, "plan 1: {'drop_layers': 2} is not a plan"),
        ("- {strategy: dus, drop_layers: 9}", ArgsError, "plan 1: drop_layers: 9 is impossible for a base of 8 layers"),
        (
            "- {strategy: slices, slices: [{model: o/b, layers: [0, 9]}]}",
            ArgsError,
            "plan 1: takes layers from o/b",
        ),
        ("- {strategy: duss}", PluginError, "plan 1: strategy: 'duss'"),
    ],
)
def test_invalid_plans(text, kind, words, tmp_path):
    (tmp_path / "plans.yml").write_text(text)
    with pytest.raises(kind) as error:
        read_candidates(tmp_path / "plans.yml", 8)
    assert words in str(error.value)
    assert str(tmp_path / "plans.yml") in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ArgsError, match=r"plans\.yml: cannot be read"):
        read_candidates(tmp_path / "plans.yml", 8)
