"""`solar upscale ORG/MODEL` from a stand-in Hub, in a process with a Hub folder of its own."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow

LICENSES = {
    "LICENSE": "the terms\n",
    "NOTICE": "based on another model\n",
    "USE_POLICY.md": "not for this\n",
    "licenses/data.txt": "of the data\n",
}
CARD = "---\nlicense: other\nlicense_name: made-up\nlicense_link: LICENSE\n---\n# base\n"


@pytest.fixture
def on_hub(hub, base):
    """The base of 8 layers as org/base, with license files and code that must not be fetched."""
    for name, text in {**LICENSES, "README.md": CARD, "optimizer.pt": "x", "modeling_x.py": "raise SystemExit"}.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    return hub.folder("org/base", base)


@pytest.fixture
def upscale(hub, run, tmp_path):
    def command(*arguments, home="home", **environment):
        env = hub.environment(tmp_path / home, HF_HUB_DOWNLOAD_TIMEOUT="5", **environment)
        ended = run("solar", "upscale", *arguments, "--drop-layers", "2", cwd=tmp_path, env=env)
        assert "Traceback" not in ended.stderr
        assert "hf_stand_in" not in ended.stdout + ended.stderr
        return ended

    return command


def test_the_license_files_of_a_hub_base_are_copied(hub, on_hub, upscale, run, tmp_path):
    ended = upscale("org/base", "out")
    assert ended.returncode == 0, ended.stderr
    for name, text in LICENSES.items():
        assert (tmp_path / "out" / name).read_text() == text
    card = (tmp_path / "out/README.md").read_text()
    for line in ("license: other", "license_name: made-up", "license_link: LICENSE", "org/base"):
        assert line in card
    record = json.loads((tmp_path / "out/config.json").read_text())["solar_plugins"]
    assert on_hub.refs["main"] in json.dumps(record)
    assert not hub.asked("GET", "/resolve/.*/(optimizer.pt|modeling_x.py)")
    # The same again, and its check, without the network.
    hub.requests.clear()
    offline = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    verified = run("solar", "verify", "out", cwd=tmp_path, env=offline)
    assert verified.returncode == 0, verified.stderr
    shutil.rmtree(tmp_path / "out")
    assert upscale("org/base", "out", HF_HUB_OFFLINE="1").returncode == 0
    assert {name: (tmp_path / "out" / name).read_text() for name in LICENSES} == LICENSES
    assert hub.requests == []


def test_offline_a_cache_that_may_lack_a_license_is_said(on_hub, upscale, hub, tmp_path):
    assert upscale("org/base", "out").returncode == 0
    for path in (tmp_path / "home").rglob("snapshots/*/NOTICE"):
        path.unlink()
    ended = upscale("org/base", "again", HF_HUB_OFFLINE="1")
    assert "license" in ended.stderr
    assert f"hf download org/base --revision {on_hub.refs['main']}" in ended.stderr


@pytest.mark.parametrize(
    ("options", "token", "says"),
    [
        ({"private": True}, None, "401"),
        ({"gated": True}, "hf_stand_in", "403"),
        ({}, "hf_wrong", "401"),
    ],
)
def test_a_base_that_may_not_be_read(hub, base, upscale, options, token, says):
    hub.folder("org/base", base, **options)
    ended = upscale("org/base", "out", HF_TOKEN=token or "")
    assert ended.returncode == 1
    assert "org/base" in ended.stderr
    assert says in ended.stderr
    assert "HF_TOKEN" in ended.stderr
    assert "hf_wrong" not in ended.stderr


def test_a_base_that_does_not_exist(hub, upscale):
    ended = upscale("org/bace", "out")
    assert ended.returncode == 1
    assert "org/bace" in ended.stderr
    assert "spelling" in ended.stderr


def test_a_revision_of_a_base(hub, on_hub, upscale, tmp_path):
    first = on_hub.refs["main"]
    on_hub.commit({"LICENSE": "other terms\n"})
    ended = upscale("org/base", "out", "--revision", first)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out/LICENSE").read_text() == LICENSES["LICENSE"]


def test_a_connection_that_is_cut_while_weights_come(hub, on_hub, upscale, tmp_path):
    hub.misbehave("GET", "/lfs-store/", cut=1000, times=2)
    ended = upscale("org/base", "out")
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_failed_license_download_leaves_no_model(hub, on_hub, upscale, tmp_path):
    hub.misbehave("GET", "/resolve/.*/LICENSE", status=403, times=100)
    ended = upscale("org/base", "out")
    assert ended.returncode == 1
    assert not (tmp_path / "out").exists()
    hub.faults.clear()
    assert upscale("org/base", "out").returncode == 0
    assert (tmp_path / "out/LICENSE").read_text() == LICENSES["LICENSE"]


@pytest.mark.slow
def test_transformers_loads_the_base_and_our_checkpoint_of_it(hub, on_hub, upscale, run, tmp_path):
    assert upscale("org/base", "out").returncode == 0
    code = (
        "from transformers import AutoModelForCausalLM as Auto\n"
        "print([len(Auto.from_pretrained(name).model.layers) for name in ('org/base', 'out')])"
    )
    ended = run("python", "-c", code, cwd=tmp_path, env=hub.environment(tmp_path / "other"))
    assert "[8, 12]" in ended.stdout, ended.stderr
