"""Facts that README and docs repeat from other files of the repository."""

import re
from pathlib import Path

from doc_blocks import blocks_of, commands_of

from solar_plugins.cli import solar
from solar_plugins.plugins.manager import BUILT_IN_PLUGINS, owned
from solar_plugins.upscaling.architectures.table import ARCHITECTURES
from solar_plugins.upscaling.strategies.base import InitStrategy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXPLANATION = ROOT / "docs" / "explanation"


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| model")]


def test_the_table_of_models_counts_what_the_architecture_table_shows():
    page = (EXPLANATION / "fast-right-safe.md").read_text()
    compared, refused = (ROOT / "docs" / "architectures.md").read_text().split("## Refused")
    times_refused = [row.count("refused") for row in rows(compared)]
    assert len(times_refused) > 150
    assert f"Each of the {len(times_refused)} models" in page
    assert f"| {times_refused.count(0)} | equal by every plan |" in page
    assert f"| {sum(0 < times < 3 for times in times_refused)} | equal, or refused where a plan breaks" in page
    assert f"| {times_refused.count(3)} | refused |" in page
    assert f"| {len(rows(refused))} | refused with the reason |" in page


def test_the_types_with_identity_layers_are_those_of_the_table():
    _, _, after = (EXPLANATION / "limits.md").read_text().partition("- Identity layers (`block_expansion`): ")
    named = after.partition(";")[0].replace(" and ", ", ").split(",")
    types = sorted(name for name, row in ARCHITECTURES.items() if row.residual_writers)
    assert [name.strip() for name in named] == types


def test_every_picture_and_page_that_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_is_short_and_shows_use_before_limits():
    assert len(README.encode()) < 12_000
    assert README.index("make demo") < README.index("## Install") < README.index("docs/gpu/gpu.md")


def test_four_commands_lead_to_a_sentence():
    first = next(block for block in blocks_of(ROOT / "README.md") if "git clone" in block.text)
    programs = [Path(command.words[0]).name for command in commands_of(first)]
    assert programs == ["git", "cd", "make", "python"]


def test_every_command_and_strategy_has_its_row():
    named = set(re.findall(r"`solar ([a-z0-9-]+)`", README[README.index("## Commands") :]))
    assert named >= set(solar.commands)
    table = README[README.index("| strategy |") : README.index("## Recipes")]
    strategies = owned("register_init_strategies", InitStrategy)
    built_in = {name for name, (plugin, _) in strategies.items() if plugin in BUILT_IN_PLUGINS}
    assert set(re.findall(r"`([a-z_]+)`", table)) == built_in


def test_the_demo_was_measured_once():
    """README and tutorial show the same table and the same sentence."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    table, again = (rows(page.partition("| perplexity |")[2])[:3] for page in (README, tutorial))
    assert len(table) == 3
    assert table == again
    (code,) = (block.text for block in blocks_of(ROOT / "README.md") if "from transformers" in block.text)
    assert code.partition("make demo\n")[2] in tutorial
    (printed,) = (block.text for block in blocks_of(ROOT / "README.md") if block.language == "text")
    assert printed in tutorial
