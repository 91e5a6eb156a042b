import pytest

from solar_plugins.lineage.public import public_recipe, public_text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/my data/rows.jsonl", "rows.jsonl"),
        ("~/models/base", "base"),
        ("../me/base", "base"),
        ("/home/me/out/sft/merged", "sft/merged"),
        ("~/merged", "merged"),
        ("/merged/", "merged"),
        (r"C:\Users\me\base", "base"),
        ("see /home/me/x.json, and ~/y/z", "see x.json, and z"),
        ("file=/srv/me/a/b.json", "file=b.json"),
        ("./outputs/sft", "./outputs/sft"),
        ("org/name", "org/name"),
        ("https://host/a/b/c.json", "https://host/a/b/c.json"),
        ("https://me:secret@host/x", "https://host/x"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("/no_think", "/no_think"),
        ("hf_abcdefghijklmnopqrstuv", "(removed)"),
        (r"model.layers.(2[4-9]|3[01])\..*", r"model.layers.(2[4-9]|3[01])\..*"),
        ("1/2 and and/or", "1/2 and and/or"),
    ],
)
def test_absolute_paths_and_secrets_are_removed(text, public):
    assert public_text(text) == public


def test_keys_with_secrets_are_left_out_and_tokens_of_the_tokenizer_stay():
    recipe = {
        "hub_token": "x", "wandb_api_key": "x", "token": "x", "my_secret": "x", "password": "x",
        "axolotl_config_path": "/x/y.yml", "special_tokens": {"eos_token": "<|im_end|>"}, "tokens": ["<a>"],
        "datasets": [{"path": "/data/me/rows.jsonl", "hf_token": "x"}], "val_set_size": 0.1, "nothing": None,
    }  # fmt: skip
    assert public_recipe(recipe) == {
        "special_tokens": {"eos_token": "<|im_end|>"},
        "tokens": ["<a>"],
        "datasets": [{"path": "rows.jsonl"}],
        "val_set_size": 0.1,
    }
