import pytest

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.evaluation.held_out import checked_prompts, held_out_path, read_texts
from solar_plugins.recipe import parse_recipe


def test_the_option_goes_before_the_recipe(tmp_path):
    (tmp_path / "a.jsonl").touch()
    recipe = parse_recipe({"test_datasets": [{"path": str(tmp_path / "a.jsonl")}, {"path": "other"}]})

    assert held_out_path(recipe, None) == tmp_path / "a.jsonl"
    assert held_out_path(recipe, tmp_path / "b.jsonl") == tmp_path / "b.jsonl"


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        ({}, "test_datasets: missing"),
        ({"test_datasets": []}, "test_datasets: missing"),
        ({"test_datasets": [{"path": "lab/hub-data"}]}, "'lab/hub-data' is not a local file"),
        ({"test_datasets": ["x"]}, "None is not a local file"),
    ],
)
def test_a_recipe_without_a_file_of_held_out_text_is_told_how_to_give_one(recipe, found):
    with pytest.raises(ArgsError, match=f"{found}.*--held-out FILE.jsonl"):
        held_out_path(parse_recipe(recipe), None)


def test_texts_are_read_in_order_and_blank_lines_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": " two\\n", "source": "x"}\n', encoding="utf-8")

    assert read_texts(path) == ["one", " two\n"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "row 2: the row is not JSON"),
        ('"text"', 'row 2: the row has type str, .*"text"'),
        ('{"content": "x"}', "row 2: text is None; expected a JSON object"),
        ('{"text": 3}', "row 2: text is 3"),
        ('{"text": " "}', "row 2: text is ' '; expected a JSON object with a \"text\" that is not blank"),
        ('{"text": "a \\ud83d b"}', r"row 2: text .*'\\ud83d'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + row + "\n")

    with pytest.raises(ArgsError, match=f"a.jsonl: 1 of 2 rows cannot be used, the first is {message}"):
        read_texts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: empty"),
        ("a.jsonl", b"\n \n", "a.jsonl: empty"),
        (
            "a.jsonl",
            b'{"text": "\xff"}',
            "a.jsonl: 1 of 1 rows cannot be used, the first is row 1: the row is not UTF-8",
        ),
        ("a.txt", b"text", r"a\.txt: unknown file format; expected .*\.jsonl"),
        ("a.jsonl", None, r"a.jsonl: cannot be read \(No such file"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SolarError, match=message):
        read_texts(tmp_path / name)


def test_a_few_bad_rows_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' * 60 + b"\xff\n")

    assert read_texts(path) == ["good"] * 60
    assert "1 of 61 rows cannot be used, the first is row 61: the row is not UTF-8" in caplog.text


def test_prompts_are_those_given_or_the_beginnings_of_three_texts():
    texts = ["a  short\ntext", "b " * 40, "c", "d"]

    assert checked_prompts(["mine", "and mine"], texts) == ("mine", "and mine")
    assert checked_prompts([], texts) == ("a short text", " ".join(["b"] * 12), "c")


def test_a_blank_prompt_is_refused():
    with pytest.raises(ArgsError, match="prompt 2: ' ' is blank"):
        checked_prompts(["x", " "], [])


def test_a_prompt_that_was_no_utf_8_is_refused():
    with pytest.raises(ArgsError, match=r"prompt 1: .*'\\udcff'.*UTF-8"):
        checked_prompts([b"caf\xff".decode("utf-8", "surrogateescape")], [])
