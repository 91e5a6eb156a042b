import json
from pathlib import Path

import pytest
from lineages import BASE, MIT, ON_HUB, PLAN, SFT, TUNED, UPSCALE, UPSCALED, lineage

from solar_plugins.errors import CheckpointError
from solar_plugins.lineage import LINEAGE_FILE, License, Source, Stage, read, write
from solar_plugins.lineage.record import merged, model_source, with_license
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import write_checkpoint
from solar_plugins.upscaling.layer_plan import Donor, LayerPlan, PlannedLayer
from solar_plugins.upscaling.provenance import provenance


def config(folder, record):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | record))


def test_what_is_written_is_read_back(tmp_path):
    written = lineage(UPSCALE, SFT, language=("en",))
    write(tmp_path / "model", written)
    assert read(tmp_path / "model") == written


def test_a_folder_without_a_record_says_nothing(tmp_path):
    assert read(tmp_path) is None
    config(tmp_path, {})
    assert read(tmp_path) is None


def test_without_the_file_the_record_gives_base_and_plan(tmp_path):
    config(tmp_path, provenance("org/base", "a" * 40, PLAN))
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    found = read(tmp_path)
    assert (found.bases, found.layer_plan) == ((BASE,), PLAN)
    assert [stage.kind for stage in found.stages] == ["upscale"]
    assert found.earlier_unknown, "it may have been trained since"
    assert found.licenses == (License(id="other", name="own", link="LICENSE", source="org/base"),)


def test_a_base_with_stages_of_its_own_that_is_upscaled_again_keeps_them(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(base, lineage(UPSCALE, SFT))
    plan = LayerPlan.from_sources(8, [*range(6), *range(2, 8)])
    write_checkpoint(find_base(str(base)), plan, tmp_path / "up")
    found = read(Path("up"))
    assert [stage.kind for stage in found.stages] == ["upscale", "sft", "upscale"]
    assert (found.layer_plan, found.result.name) == (plan, "up")
    assert found.stages[-1].sources == (TUNED,)
    assert found.hub_parents == [BASE]


def test_a_base_from_a_folder_is_not_on_the_hub(tmp_path):
    config(tmp_path, provenance("base", None, PLAN))
    found = read(tmp_path)
    assert found.bases == (Source(name="base"),)
    assert found.hub_parents == []
    assert found.unlicensed == ("base",)


def test_donors_are_bases_too(tmp_path):
    plan = LayerPlan(1, (PlannedLayer(0), PlannedLayer(0, model=1)), (Donor("org/b", "b" * 40, 1),))
    config(tmp_path, provenance("org/base", "a" * 40, plan))
    found = read(tmp_path)
    assert [source.name for source in found.hub_parents] == ["org/base", "org/b"]
    assert "org/b" in found.unlicensed, "the card is inherited from the base alone"


def test_of_an_upscaled_checkpoint_every_stage_is_known(base, tmp_path):
    (base / "README.md").write_text("---\nlicense: mit\nlanguage: no\n---\n")
    write_checkpoint(find_base(str(base)), LayerPlan.from_sources(8, [*range(6), *range(2, 8)]), tmp_path / "up")
    found = read(tmp_path / "up")
    assert [stage.kind for stage in found.stages] == ["upscale"]
    assert not found.earlier_unknown
    assert [one.id for one in found.licenses] == ["mit"]
    assert found.language == ("no",)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": 2}, "format"),
        ({"other": 1}, "other: unknown key"),
        ({"plan": {"base_layers": 4}}, "plan"),
        ({"bases": [{"name": "../../etc/passwd", "on_hub": True}]}, "hub id"),
        ({"bases": [{"name": "a\x1b[31m"}]}, "control characters"),
        ({"stages": [{"kind": "sft", "result": {"name": "x"}}] * 500}, "stages"),
    ],
)
def test_a_file_that_is_not_a_lineage_is_an_error_that_names_it(tmp_path, changed, says):
    write(tmp_path, lineage(UPSCALE))
    path = tmp_path / LINEAGE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(CheckpointError) as error:
        read(tmp_path)
    assert str(path) in str(error.value)
    assert says in str(error.value)


def test_a_record_that_cannot_be_read_is_an_error(tmp_path):
    config(tmp_path, {"solar_plugins": {"plan": 1}})
    with pytest.raises(CheckpointError, match=r"config\.json: the record 'solar_plugins' cannot be read"):
        read(tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    write(tmp_path / "other", lineage(UPSCALE))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / LINEAGE_FILE).symlink_to(tmp_path / "other" / LINEAGE_FILE)
    assert read(tmp_path / "model") is None


def test_the_parent_on_the_hub_is_the_nearest_one():
    assert lineage(UPSCALE, SFT).hub_parents == [BASE]
    pushed = UPSCALE.model_copy(update={"result": Source(name="me/dus", on_hub=True)})
    from_hub = SFT.model_copy(update={"sources": (Source(name="me/dus", on_hub=True),)})
    assert [source.name for source in lineage(pushed, from_hub).hub_parents] == ["me/dus"]
    local = Stage(kind="dpo", result=Source(name="dpo"), sources=(TUNED,))
    assert lineage(UPSCALE, SFT, local).hub_parents == [BASE]


def test_stages_that_name_each_other_many_times_do_not_hang():
    names = [Source(name=str(number)) for number in range(200)]
    pairs = zip(names, [BASE, *names], strict=False)
    chain = [Stage(kind="merge", result=result, sources=(source,) * 100) for result, source in pairs]
    assert lineage(*chain).hub_parents == [BASE]


def test_merged_lineages_share_what_is_common():
    other = SFT.model_copy(update={"result": Source(name="outputs/other")})
    found = merged([lineage(UPSCALE, SFT), lineage(UPSCALE, other)])
    assert [stage.result.short for stage in found.stages] == ["solar_dus", "solar_sft", "other"]
    assert (found.bases, found.licenses, found.layer_plan) == ((BASE,), (MIT,), PLAN)


def test_merged_lineages_with_other_plans_and_licenses():
    apache = License(id="apache-2.0", source="org/other")
    other = lineage(UPSCALE, plan=None, licenses=(apache,), bases=(Source(name="org/other", on_hub=True),))
    found = merged([lineage(UPSCALE), other])
    assert found.plan is None
    assert found.licenses == (MIT, apache)
    assert [source.name for source in found.bases] == ["org/base", "org/other"]


def test_only_what_is_no_folder_and_looks_like_one_is_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_source("org/base", "v1") == Source(name="org/base", revision="v1", on_hub=True)
    (tmp_path / "outputs" / "sft").mkdir(parents=True)
    assert model_source("outputs/sft") == Source(name="outputs/sft")
    assert model_source(str(tmp_path / "outputs" / "sft")) == Source(name="sft")
    assert not model_source("runs/x/sft").on_hub


def test_a_license_that_is_no_text_counts_as_none(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit, apache-2.0]\nlanguage: {a: b}\n---\n")
    found = with_license(lineage(UPSCALE, licenses=()), tmp_path, "org/base")
    assert (found.licenses, found.unlicensed, found.language) == ((), ("org/base",), ())


def test_names_are_short_for_people():
    assert (UPSCALED.short, ON_HUB.short) == ("solar_dus", "org/rows")
