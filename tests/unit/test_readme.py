"""Figures of the README that other files of the repository hold."""

from pathlib import Path

from solar_plugins.upscaling.architectures.table import ARCHITECTURES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| model")]


def test_the_table_of_models_counts_what_the_architecture_table_shows():
    compared, refused = (ROOT / "docs" / "architectures.md").read_text().split("## Refused")
    times_refused = [row.count("refused") for row in rows(compared)]
    assert len(times_refused) > 150
    assert f"Each of the {len(times_refused)} models" in README
    assert f"| {times_refused.count(0)} | equal by every plan |" in README
    assert f"| {sum(0 < times < 3 for times in times_refused)} | equal, or refused where a plan breaks" in README
    assert f"| {times_refused.count(3)} | refused |" in README
    assert f"| {len(rows(refused))} | refused with the reason |" in README


def test_the_types_with_identity_layers_are_those_of_the_table():
    _, _, after = README.partition("- Identity layers (`block_expansion`): ")
    named = after.partition(";")[0].replace(" and ", ", ").split(",")
    types = sorted(name for name, row in ARCHITECTURES.items() if row.residual_writers)
    assert [name.strip() for name in named] == types
    assert f"Identity layers for {len(types)} model types" in (ROOT / "CHANGELOG.md").read_text()


def test_every_picture_and_page_that_it_names_exists():
    import re

    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
