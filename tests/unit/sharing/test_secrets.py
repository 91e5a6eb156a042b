"""Secrets and machine paths: what is found, and what is left alone."""

import pytest

from solar_plugins.sharing.secrets import Machine, in_file, in_text, in_value

BOB = Machine("bobsmith", "gpubox17", "/opt/people/bobsmith", "/opt/people/bobsmith/run")

SECRETS = [
    "hf_" + "aB3" * 12,
    "sk-ant-api03-" + "x1" * 20,
    "AKIA" + "ABCD1234" * 2,
    "ghp_" + "a1" * 18,
    "https://bob:hunter22@example.org/x",
    "https://x.org/data?sig=" + "a1" * 20,
    "Bearer " + "abcdef12" * 4,
    "-----BEGIN RSA PRIVATE KEY-----",
]
"""Made up; each has the form that its service gives out."""


def kinds(found):
    return {one.kind for one in found}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", ["note: {}", "# {}", "launch: srun {} x", "- - {}"])
def test_a_token_is_found_anywhere_in_a_text_and_never_repeated(secret, place):
    found = in_text(f"base_model: a/b\n{place.format(secret)}\n", BOB)
    assert "secret" in kinds(found)
    assert all(one.where == "line 2" and secret not in one.what for one in found if one.kind == "secret")


@pytest.mark.parametrize("secret", SECRETS[:5])
def test_a_token_is_found_in_values_and_in_keys(secret):
    assert in_value({"a": [{"b": secret}]}, BOB)[0].where == "a[0].b"
    assert "secret" in kinds(in_value({secret: 1}, BOB))


@pytest.mark.parametrize("key", ["hub_token", "WANDB_API_KEY", "wandb_api_key", "aws_secret_access_key", "password"])
def test_any_value_of_a_secret_key_counts(key):
    assert [one.where for one in in_value({"x": {key: "4f9a77c0b1"}}, BOB)] == [f"x.{key}"]
    assert in_text(f"launch: {key}=4f9a77c0b1 torchrun", BOB)[0].kind == "secret"


def test_a_token_that_the_text_breaks_over_lines_is_found_in_the_value():
    secret = SECRETS[0]
    text = f'note: "{secret[:9]}\\\n  {secret[9:]}"\n'
    assert "secret" in kinds(in_file(text, {"note": secret}, BOB))


@pytest.mark.parametrize(
    "value",
    [
        {"hf_use_auth_token": True},
        {"hub_token": "${HUB_TOKEN}"},
        {"special_tokens": {"pad_token": "<|pad|>", "eos_token": "</s>", "bos_token": "<s>"}},
        {"revision_of_model": "27d67f1b5f57dc0953326b2601d68371d40ea8da"},
        {"path": "https://example.org/home/bob/x?download=true"},
        {"base_model": "bobsmith/my-model"},
        {"prompt": "/no_think"},
        {"chat_template_jinja": "{{ '/n' }}{% if x %}~{% endif %}"},
        {"lora_target_modules": "model.layers.[\\d]+.mlp.(down|up)_proj"},
        {"api_key": "<your key>"},
        {"num_tokens": "1000000", "max_tokens": "4096"},
    ],
)
def test_what_is_no_secret(value):
    assert in_value(value, BOB) == []


@pytest.mark.parametrize("path", ["/home/bob/x.jsonl", "~/x", "/mnt/disk", "C:\\Users\\bob\\x", "file:///data/x"])
def test_machine_paths(path):
    assert [one.kind for one in in_value({"datasets": [{"path": path}]}, BOB)][:1] == ["path"]


def test_paths_and_names_in_comments():
    text = "# made in /home/bob/run\n# by bobsmith on gpubox17\n# see /opt/people/bobsmith/run/x and https://x.org/home/a\n"
    found = in_text(text, BOB)
    assert [(one.kind, one.where) for one in found] == [
        ("path", "line 1"),
        ("name", "line 2"),
        ("name", "line 2"),
        *(("path", "line 3"),) * 2,
    ]
