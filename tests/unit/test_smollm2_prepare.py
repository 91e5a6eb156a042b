"""`recipes/smollm2/prepare.py` and the rows that it splits, on a made source package."""

import hashlib
import importlib
import io
import json
import tarfile

import pytest
from click.testing import CliRunner

from solar_plugins.data.formatters import preference_formatters, sft_formatters
from solar_plugins.plugins.recipe_packs import recipe_directory

ARTICLES = [f"Article {n}. It has two sentences. And an unfinished" for n in range(12)]
INSTRUCTIONS = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(120)]


def pair(number, system):
    first = [{"from": "system", "value": "Be brief."}] if system else []
    return {
        "conversations": [*first, {"from": "human", "value": f"Say {number}."}],
        "chosen": {"from": "gpt", "value": f"{number}"},
        "rejected": {"from": "gpt", "value": "No."},
    }


PAIRS = [pair(number, system=number % 3 == 0) for number in range(60)]


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.syspath_prepend(recipe_directory() / "smollm2")
    return importlib.import_module("prepare")


@pytest.fixture
def downloads(prepare, monkeypatch, tmp_path):
    """Makes `prepare.download` give a made source package; returns the list of what was asked for."""
    contents = {
        "wiki_demo.txt": "\n".join(ARTICLES),
        "alpaca_en_demo.json": json.dumps(INSTRUCTIONS),
        "dpo_en_demo.json": json.dumps(PAIRS),
    }
    asked = []

    def download(package, folder, *options):
        asked.append(package)
        archive = folder / "source.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, text in contents.items():
                member = tarfile.TarInfo(f"{prepare.DATA_MEMBERS}/{name}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
        return archive

    monkeypatch.setattr(prepare, "download", download)
    known = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
    monkeypatch.setattr(prepare, "DATA_SHA256", known)
    for name in prepare.BASE_FILES:
        (tmp_path / "SmolLM2-135M").mkdir(exist_ok=True)
        (tmp_path / "SmolLM2-135M" / name).touch()
    return asked


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_in_one_file_and_the_formatters_read_it(prepare, downloads, tmp_path):
    result = CliRunner().invoke(prepare.main, ["--directory", str(tmp_path)])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "alignment"
    assert {path.name for path in folder.iterdir()} == set(prepare.demo_rows.ALIGNMENT_FILES)
    train, held_out = rows(folder / "instructions_train.jsonl"), rows(folder / "instructions_held_out.jsonl")
    assert held_out == [INSTRUCTIONS[0], INSTRUCTIONS[50], INSTRUCTIONS[100]]
    assert train == [row for row in INSTRUCTIONS if row not in held_out]
    for row in train + held_out:
        sft_formatters()["alpaca"].to_messages(row)

    found, sizes = [], []
    for name, kind in (("orca", "orca_dpo_pairs"), ("other", "sharegpt_pairs"), ("held_out", "sharegpt_pairs")):
        read = [preference_formatters()[kind].to_pair(row, None) for row in rows(folder / f"pairs_{name}.jsonl")]
        assert all(len(one.prompt) == 2 for one in read) or name != "orca", "with the system text"
        found += read
        sizes.append(len(read))
    expected = [preference_formatters()["sharegpt_pairs"].to_pair(row, None) for row in PAIRS]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert sizes == [16, 33, 11]

    articles = tmp_path / "data"
    assert [row["text"] for row in rows(articles / "wiki_held_out.jsonl")] == [
        f"Article {n}. It has two sentences." for n in (0, 5, 10)
    ]
    assert len(rows(articles / "wiki_train.jsonl")) == 9


def test_a_row_whose_prompt_is_trained_on_is_not_held_out(prepare, tmp_path):
    """The real samples hold rows twice."""
    (tmp_path / "rows.json").write_text(json.dumps([*INSTRUCTIONS, INSTRUCTIONS[50] | {"output": "fifty"}]))
    (tmp_path / "pairs.json").write_text(json.dumps([*PAIRS, PAIRS[0], PAIRS[1]]))
    prepare.demo_rows.write_alignment(tmp_path / "rows.json", tmp_path / "pairs.json", tmp_path)
    assert rows(tmp_path / "instructions_held_out.jsonl") == [INSTRUCTIONS[0], INSTRUCTIONS[100]]
    assert len(rows(tmp_path / "instructions_train.jsonl")) == 118
    held_out = rows(tmp_path / "pairs_held_out.jsonl")
    assert len(held_out) == 9
    assert PAIRS[0] not in held_out
    assert PAIRS[1] not in held_out
    assert [len(rows(tmp_path / f"pairs_{kind}.jsonl")) for kind in ("orca", "other")] == [17, 34]


def test_an_existing_folder_is_not_changed(prepare, downloads, tmp_path):
    """As after an earlier version of the script, which made no `alignment`."""
    (tmp_path / "data").mkdir()
    for name in prepare.demo_rows.ARTICLE_FILES:
        (tmp_path / "data" / name).write_text("kept")
    assert CliRunner().invoke(prepare.main, ["--directory", str(tmp_path)]).exit_code == 0
    assert downloads == ["llamafactory==0.9.5"]
    assert (tmp_path / "data" / "wiki_train.jsonl").read_text() == "kept"
    again = CliRunner().invoke(prepare.main, ["--directory", str(tmp_path)])
    assert again.output.startswith("Nothing to do")
    assert len(downloads) == 1


def test_a_file_with_another_content_is_refused(prepare, downloads, tmp_path, monkeypatch):
    monkeypatch.setitem(prepare.DATA_SHA256, "dpo_en_demo.json", "0" * 64)
    result = CliRunner().invoke(prepare.main, ["--directory", str(tmp_path)])
    assert result.exit_code == 1
    assert "dpo_en_demo.json has the SHA-256" in result.output
    assert not (tmp_path / "alignment").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_an_incomplete_folder_is_named(prepare, downloads, tmp_path):
    (tmp_path / "alignment").mkdir()
    result = CliRunner().invoke(prepare.main, ["--directory", str(tmp_path)])
    assert result.exit_code == 1
    assert "alignment exists but lacks instructions_train.jsonl" in " ".join(result.output.split())
