"""The schema of a recipe for `solar maths`, and its prompts."""

import pytest
import yaml

from solar_plugins.errors import DataError
from solar_plugins.maths.recipe import PLACEHOLDERS, PROMPTS, read_maths

RECIPE = {
    "seeds": {"path": "problems.jsonl", "license": "mit"},
    "endpoint": {"base_url": "http://localhost:8000/v1/", "model": "m"},
    "kinds": {"rephrase": None, "solve": {"votes": 4, "agree": 3}},
    "output": "out",
}


def read(folder, **changes):
    recipe = {**RECIPE, **changes}
    (folder / "r.yml").write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
    return read_maths(folder / "r.yml")


def test_the_smallest_recipe(tmp_path):
    args, prompts = read(tmp_path)
    assert args.endpoint.base_url == ["http://localhost:8000/v1"]
    assert (args.kinds["rephrase"].samples, args.kinds["solve"].votes) == (1, 4)
    assert str(args.store_path) == "out.sqlite"
    assert prompts.keys() == PROMPTS.keys()


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_has_its_placeholders(name):
    assert all(f"{{{one}}}" in PROMPTS[name] for one in PLACEHOLDERS[name])


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"seeds": None}, ["seeds", "missing"]),
        ({"seeds": {"path": "a.jsonl"}}, ["seeds.license", "missing"]),
        ({"seeds": {"path": "org/set", "license": "mit"}}, ["org/set", "hub id", "files"]),
        ({"seeds": {"path": "a.jsonl", "revision": "x", "license": "mit"}}, ["revision", "local files"]),
        ({"seeds": {"path": ["o/a", "o/b"], "files": "*", "license": "mit"}}, ["files", "one hub id"]),
        ({"endpoint": {"base_url": "localhost:8000", "model": "m"}}, ["endpoint.base_url", "http://"]),
        ({"endpoint": {"base_url": "http://me:secret@host/v1", "model": "m"}}, ["endpoint.base_url", "key_variable"]),
        ({"endpoint": {"base_url": "http://h/v1", "model": "m", "key": "s"}}, ["endpoint.key", "key_variable"]),
        ({"endpoint": {"base_url": "http://h/v1", "model": "m", "extra": {"seed": 1}}}, ["endpoint.extra", "seed"]),
        ({"kinds": {}}, ["kinds"]),
        ({"kinds": {"rephase": {}}}, ["kinds.rephase", "rephrase"]),
        ({"kinds": {"solve": {"votes": 2, "agree": 3}}}, ["kinds.solve", "agree", "votes"]),
        ({"kinds": {"solve": {"sample": 3}}}, ["kinds.solve.sample", "samples"]),
        ({"limits": {"cost": 5}}, ["limits.cost", "price"]),
        ({"prompts": {"slove": "a.txt"}}, ["prompts", "slove", "solve"]),
        ({"prompts": {"solve": "none.txt"}}, ["none.txt", "solve"]),
        ({"sampling": {"max_tokens": 0}}, ["sampling.max_tokens", "0"]),
        ({"outptu": "x"}, ["outptu", "output"]),
    ],
)
def test_invalid_recipes(tmp_path, changes, facts):
    with pytest.raises(DataError) as error:
        read(tmp_path, **changes)
    for fact in facts:
        assert fact in str(error.value)


def test_prompts_from_files(tmp_path):
    (tmp_path / "solve.txt").write_text("Solve {question} in $\\frac{1}{2}$ a minute.")
    _, prompts = read(tmp_path, prompts={"solve": "solve.txt"})
    assert prompts["solve"].fill(question="{1}") == "Solve {1} in $\\frac{1}{2}$ a minute."
    assert prompts["solve"].version != read(tmp_path)[1]["solve"].version
    (tmp_path / "solve.txt").write_text("Solve it.")
    with pytest.raises(DataError, match=r"solve.txt.*\{question\}"):
        read(tmp_path, prompts={"solve": "solve.txt"})
