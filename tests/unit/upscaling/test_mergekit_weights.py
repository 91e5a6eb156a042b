import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.mergekit import weights_of


@pytest.mark.parametrize("spelling", ["base", "./base", "../here/base", "~/base", "base/config.json"])
def test_a_local_base_gets_its_whole_path(made_bases, tmp_path, monkeypatch, spelling):
    here = tmp_path / "here"
    shutil.copytree(made_bases / "llama", here / "base")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    found = weights_of(spelling, None)
    assert Path(found.model).is_absolute()
    assert Path(found.model).samefile(here / "base")
    assert found.dtypes == {"BF16"}


def test_weights_that_are_not_here_are_not_fetched(base):
    (base / "model.safetensors").unlink()
    assert weights_of(str(base), None).dtypes is None


def test_names_of_training_wrappers_are_refused(base):
    tensors = load_file(base / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match="training wrapper, and mergekit does not strip"):
        weights_of(str(base), None)
