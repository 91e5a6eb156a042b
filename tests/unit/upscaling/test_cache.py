import pytest
from click.testing import CliRunner

from solar_plugins.cli import solar
from solar_plugins.errors import ArgsError
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.cache import cached_checkpoints, remove_cached
from solar_plugins.upscaling.checkpoint import ensure_checkpoint
from solar_plugins.upscaling.layer_plan import LayerPlan

PLANS = [LayerPlan.from_sources(8, [*range(8 - m), *range(m, 8)]) for m in (2, 3)]


@pytest.fixture
def cache(base, tmp_path):
    for plan in PLANS:
        ensure_checkpoint(find_base(str(base)), plan, tmp_path / "cache")
    (tmp_path / "cache" / "somebody-elses").mkdir()
    return tmp_path / "cache"


def run(*arguments):
    return CliRunner().invoke(solar, [str(argument) for argument in arguments])


def test_each_checkpoint_is_listed_with_its_size_and_plan(cache):
    found = cached_checkpoints(cache)
    assert {one.description.split(": ", 1)[1] for one in found} == {str(plan) for plan in PLANS}
    for one in found:
        assert one.num_bytes == sum(path.stat().st_size for path in (cache / one.name).rglob("*"))
    said = run("cache", "list", "--cache-dir", cache).output
    assert said.count("8 -> 1") == 2
    assert f"{cache}: 2 checkpoints, " in said
    assert "0 checkpoints, 0 B" in run("cache", "list", "--cache-dir", cache / "absent").output


def test_what_is_removed_is_gone_and_the_rest_stays(cache):
    one, other = cached_checkpoints(cache)
    said = run("cache", "remove", one.name, "--cache-dir", cache)
    assert (said.exit_code, f"{one.name}: removed, " in said.output) == (0, True)
    assert sorted(path.name for path in cache.iterdir()) == sorted([other.name, "somebody-elses"])


@pytest.mark.parametrize("name", ["somebody-elses", "..", "upscaled-x", "upscaled-8-to-12-0/../.."])
def test_nothing_else_is_ever_removed(cache, name):
    before = sorted(cache.rglob("*"))
    with pytest.raises(ArgsError, match=r"not in .*; expected one of: upscaled-8-to-1"):
        remove_cached(cache, name)
    assert sorted(cache.rglob("*")) == before


def test_a_damaged_one_is_listed_with_the_reason_and_can_be_removed(cache):
    one, _ = cached_checkpoints(cache)
    (cache / one.name / "solar_plan.json").write_text("{")
    assert f"{one.name} " in run("cache", "list", "--cache-dir", cache).output
    assert "not usable: " in run("cache", "list", "--cache-dir", cache).output
    assert remove_cached(cache, one.name) > 0
