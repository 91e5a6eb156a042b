"""The text of the GPU check: what is held out shares no document and no 13 words in a row with what is trained on."""

import json

from gpu_texts import Document, is_held_out, read_rows, shown_passages, split, topic_documents, write_split

from solar_plugins.data.ngrams import words_of

TEXT = "\n".join(
    f"In year {year} of the long story nothing happened that anybody wrote down at {year}." for year in range(30)
)


def test_no_held_out_words_are_trained_on():
    documents = [
        *topic_documents(),
        Document("copied", "topics", (TEXT, "x " * 200)),
        Document("kept", "topics", (TEXT,), True),
    ]
    found = split(documents)
    train_names, *held_out_names = ({row["document"] for row in rows} for rows in found[:3])
    assert not train_names & held_out_names[0] | train_names & held_out_names[1] | held_out_names[0] & held_out_names[1]
    assert found.dropped >= 1
    held_out = {ngram for row in found.validation + found.test for ngram in ngrams(row["text"])}
    assert held_out
    assert not any(
        ngram in held_out for row in found.train if row["document"] == "copied" for ngram in ngrams(row["text"])
    )


def ngrams(text):
    words = words_of(text)
    return {tuple(words[at : at + 13]) for at in range(len(words) - 12)}


def test_what_is_held_out_depends_on_the_name_alone():
    names = [f"package-{number}" for number in range(400)]
    chosen = [name for name in names if is_held_out(Document(name, "docstrings", ()))]
    assert 30 <= len(chosen) <= 70  # one in eight: 50, with a deviation of 6.6
    assert chosen == [name for name in names if is_held_out(Document(name, "docstrings", ("other text",)))]


def test_shown_passages_come_from_all_parts_of_a_document_and_end_with_a_line():
    passages = shown_passages(
        Document("a", "articles", (*(f"{number} " + "word " * 60 for number in range(16)), TEXT * 3))
    )
    assert [passage.split()[0] for passage in passages] == ["0", "2", "4", "6", "8", "10", "12", "14"]
    (cut,) = shown_passages(Document("b", "articles", (TEXT,)))
    assert 1900 < len(cut) <= 2000
    assert cut.endswith(".")


def test_the_split_is_written_whole(tmp_path):
    write_split(split(topic_documents()), tmp_path / "data", {})
    sources = json.loads((tmp_path / "data" / "sources.json").read_text())
    assert sources["files"]["train.jsonl"]["rows"] == len(read_rows(tmp_path / "data" / "train.jsonl")) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
