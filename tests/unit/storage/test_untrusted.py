import os
import shutil
import time
from pathlib import Path

import pytest

from solar_plugins.errors import ArgsError, CheckpointError, DataError
from solar_plugins.storage import untrusted as untrusted_files
from solar_plugins.storage.untrusted import (
    duplicate_keys,
    is_plain_file_name,
    parse_json_object,
    parse_yaml,
    read_json_object,
    read_text,
    require_file,
    require_inside,
)

WHERE = Path("x.json")


def test_json_objects_are_read():
    assert parse_json_object(WHERE, b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_json_object(WHERE, b'{"a": 1, "a": 2}') == {"a": 2}
    limit = parse_json_object(WHERE, b'{"time_step_limit": [0.0, Infinity]}')["time_step_limit"][1]
    assert limit == float("inf"), "state-space models have it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 1_000_001, "JSON values, expected at most 1,000,000"),
        (b'{"a":' * 300_000, "not valid JSON .maximum recursion depth"),
        (b"9" * 1_000_000, "not valid JSON .Exceeds the limit"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON .Exceeds the limit"),
        (b'{"a": "\xff"}', "not valid JSON .'utf-8' codec"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b"[]", "holds a list, expected a JSON object"),
        (b"", "not valid JSON"),
        (b'{"a": "\n"}', "not valid JSON"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_rejected(text, message):
    with pytest.raises(CheckpointError, match=rf"^x.json: .*{message}") as error:
        parse_json_object(WHERE, text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 2}', b'{"b": {"a": 1, "a": 1}}', b'{"a": NaN}', b'{"a": -Infinity}'])
def test_strict_refuses_what_the_reference_refuses(text):
    parse_json_object(WHERE, text)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        parse_json_object(WHERE, text, strict=True)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("{}")
    os.truncate(path, untrusted_files.MAX_JSON_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(CheckpointError, match="25,000,001 bytes, expected at most 25,000,000"):
        read_json_object(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[1]", "holds a list, expected a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 1_000_001, "about 1,000,001 JSON values"),
        (None, "a directory, expected a file"),
    ],
)
def test_each_caller_has_an_error_and_a_fix_of_its_own(tmp_path, content, found):
    path = tmp_path / "x.json"
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=rf"^here: {path}: {found}.*; ask Ann$"):
        read_json_object(path, error=lambda text: DataError(f"here: {text}"), fix="ask Ann")


def test_plain_names():
    assert all(is_plain_file_name(name) for name in ("a", "model-00001-of-00002.safetensors", "..a", "a b", "ä"))
    hostile = ("", ".", "..", "../a", "/a", "a/b", "a/", "a\n", "\x1b[2J", "a\0", "a\u202eb", "a" * 501, 3, None)
    assert not any(is_plain_file_name(name) for name in hostile)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    assert require_file(tmp_path / "file") == 3
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path, "directory"),
        (tmp_path / "pipe", "pipe, socket or device"),
        (Path("/dev/zero"), "pipe"),
    ):
        with pytest.raises(CheckpointError, match=f"{path}: a {kind}"):
            require_file(path)
    with pytest.raises(FileNotFoundError):
        require_file(tmp_path / "missing")


def test_links_may_not_lead_out(tmp_path):
    base, secret = tmp_path / "base", tmp_path / "secret"
    (base / "sub").mkdir(parents=True)
    secret.write_text("x")
    (base / "real").write_text("x")
    (base / "sub" / "real").write_text("x")
    for name, target in (("inside", "real"), ("deeper", "sub/real"), ("absolute", base / "real")):
        (base / name).symlink_to(target)
        require_inside(base / name, base)
    (tmp_path / "alias").symlink_to(base)
    require_inside(tmp_path / "alias" / "real", tmp_path / "alias")
    (base / "chain").symlink_to("out")
    for name, target in (("out", "../secret"), ("absolute out", secret), ("dangling", "../nothing"), ("chain", None)):
        if target:
            (base / name).symlink_to(target)
        with pytest.raises(
            CheckpointError, match=rf"{name}: a link out of the model's directory, to {tmp_path}/.*cp -rL"
        ):
            require_inside(base / name, base)


def test_the_suggested_fix_works(tmp_path, run):
    (tmp_path / "base").mkdir()
    (tmp_path / "store").write_text("x")
    (tmp_path / "base" / "file").symlink_to("../store")
    for options, name in (("-rL", "copied"), ("-rlL", "linked")):
        assert os.system(f"cp {options} {tmp_path}/base {tmp_path}/{name}") == 0
        require_inside(tmp_path / name / "file", tmp_path / name)
    assert (tmp_path / "linked" / "file").samefile(tmp_path / "store")


def test_the_hub_cache_may_link_to_its_own_blobs_only(tmp_path):
    model, other = tmp_path / "models--a--b", tmp_path / "models--c--d"
    snapshot = model / "snapshots" / "abc"
    for folder in (snapshot, model / "blobs", other / "blobs"):
        folder.mkdir(parents=True)
    for repository in (model, other):
        (repository / "blobs" / "123").write_text("x")
    (snapshot / "good").symlink_to("../../blobs/123")
    require_inside(snapshot / "good", snapshot)
    (snapshot / "bad").symlink_to(other / "blobs" / "123")
    (snapshot / "above").symlink_to(model / "refs")
    for name in ("bad", "above"):
        with pytest.raises(CheckpointError, match="a link out"):
            require_inside(snapshot / name, snapshot)
    shutil.move(model / "blobs", tmp_path / "large-disk")
    (model / "blobs").symlink_to(tmp_path / "large-disk")
    require_inside(snapshot / "good", snapshot)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
BOMBS = {
    "aliases": LAUGHS,
    "merge keys": "a: &a {" + ", ".join(f"k{i}: 1" for i in range(2000)) + "}\nb: {<<: [" + "*a, " * 2000 + "]}\n",
    "an alias inside itself": "a: &a [*a]\n",
    "flow nesting": "[" * 5000,
    "block nesting": "- " * 5000,
    "question marks": "? " * 5000,
    "many values": "- a\n" * 150_000,
    "a number to the base 60": "a: 1" + ":1" * 400_000,
    "a number of many digits": "a: 0x" + "f" * 900_000,
    "more text than a file of this kind has": "a: '" + "x" * 1_000_000 + "'",
    "a tag that runs a command": "a: !!python/object/apply:os.system ['touch executed']",
    "a tag that builds an object": "a: !!python/object/new:os.PathLike []",
    "a tag that names a module": "a: !!python/module:this",
    "an unknown tag": "a: !solar 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_would_exhaust_the_machine_or_build_objects(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(ArgsError, match=r"r\.yml: ") as caught:
        parse_yaml(BOMBS[name], "r.yml")
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 1000
    assert not list(tmp_path.iterdir())


def test_yaml_aliases_of_ordinary_size_are_expanded():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n", "r") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


def test_keys_that_are_there_twice():
    text = "output_dir: out\nsolar: {init: {drop_layers: 8, drop_layers: 9}}\nx: 1\noutput_dir: /\n"
    assert sorted(duplicate_keys(text)) == ["drop_layers (line 2)", "output_dir (line 4)"]
    assert duplicate_keys("a: {<<: &b {x: 1}, <<: *b}\n") == []


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(ArgsError, match="more than 1,000,000 characters"):
        read_text(Path("/dev/zero"))
