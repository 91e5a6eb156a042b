"""Problems of a dataset on the Hub, in the layout of EleutherAI/hendrycks_math."""

import io

import pyarrow
import pyarrow.parquet
import pytest

from solar_plugins.errors import DataError
from solar_plugins.maths.recipe import SeedsArgs
from solar_plugins.maths.seeds import Seeds, seed_files, short_names


def parquet(*rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def row(problem, answer):
    return {"problem": problem, "level": "Level 1", "type": "Algebra", "solution": f"It is $\\boxed{{{answer}}}$."}


FILES = {
    "algebra/train-00000-of-00001.parquet": parquet(row("What is $1+1$?", "2"), row("What is $2+2$?", "4")),
    "algebra/test-00000-of-00001.parquet": parquet(row("A test question?", "9")),
    "geometry/train-00000-of-00001.parquet": parquet(row("What is half of a circle's $2\\pi$?", r"\pi")),
    "README.md": "---\nlicense: mit\n---\n",
}


def seeds_args(**changes):
    keys = {"path": "org/math", "files": "*/train-*.parquet", "question": "problem", "answer": "solution"}
    return SeedsArgs.model_validate({**keys, "license": "mit", **changes})


@pytest.fixture
def dataset(hub, tmp_path, monkeypatch):
    hub.use(monkeypatch, tmp_path / "home")
    return hub.repo("org/math", FILES, kind="dataset")


def test_a_dataset_on_the_hub(dataset, monkeypatch):
    args = seeds_args(revision=dataset.refs["main"])
    files = seed_files(args)
    found = list(Seeds(args, files, 42))
    assert [(seed.place, seed.final) for seed in found] == [
        ("algebra/train-00000-of-00001.parquet:1", "2"),
        ("algebra/train-00000-of-00001.parquet:2", "4"),
        ("geometry/train-00000-of-00001.parquet:1", r"\pi"),
    ]
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert seed_files(args) == files, "from the cache"


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"path": "org/none"}, r"seeds\.path: 'org/none'"),
        ({"revision": "v9"}, r"seeds\.path: 'org/math' at revision 'v9'"),
        ({"files": "train.parquet"}, r"seeds\.files: train\.parquet"),
    ],
)
def test_what_is_not_there(changes, fact):
    with pytest.raises(DataError, match=fact):
        seed_files(seeds_args(**changes))


def test_places_are_short_and_tell_files_apart():
    assert short_names(["/a/x/1.jsonl", "/a/y/1.jsonl"]) == ["x/1.jsonl", "y/1.jsonl"]
    assert short_names(["/a/x/1.jsonl", "/a/x/2.jsonl"]) == ["1.jsonl", "2.jsonl"]


def test_the_same_problem_has_the_same_id_in_another_file(tmp_path):
    for name, blank in (("a.jsonl", ""), ("b.jsonl", "\n\n")):
        (tmp_path / name).write_text(f'{blank}{{"question": "How many?", "answer": "#### 5"}}\n')
    ids = []
    for name in ("a.jsonl", "b.jsonl"):
        args = SeedsArgs.model_validate({"path": str(tmp_path / name), "license": "mit"})
        (seed,) = Seeds(args, seed_files(args), 42)
        ids.append(seed.id)
    assert ids[0] == ids[1]
