import tomllib
from pathlib import Path

import pytest

from solar_plugins.axolotl_adapter.tried_versions import TRIED_AXOLOTL, untried


@pytest.mark.parametrize("version", ["0.21", "0.21.0", "0.21.3", "0.21.0.dev0"])
def test_tried_versions(version):
    assert untried(version) is None


@pytest.mark.parametrize("version", ["0.2.1", "0.22.0", "0.210.0", "1.21", "unknown"])
def test_other_versions_are_named_with_the_way_back(version):
    assert f"meets {version}, " in untried(version)
    assert "pip install 'axolotl==0.21.*'" in untried(version)


def test_the_extra_installs_what_was_tried():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    [requirement] = project["optional-dependencies"]["axolotl"]
    assert requirement.startswith(f"axolotl[deepspeed]>={TRIED_AXOLOTL},<")
