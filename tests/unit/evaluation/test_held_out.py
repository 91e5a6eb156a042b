import json
from dataclasses import replace

import pytest

from solar_plugins.axolotl_adapter.datasets import load_rows, row_encoder
from solar_plugins.axolotl_adapter.recipe_checks import formatted_datasets
from solar_plugins.data.encoder import IGNORED_LABEL, make_encoder
from solar_plugins.data.prepared_datasets import TrainingRecords, read_set
from solar_plugins.data.row_encoder import RowEncoder
from solar_plugins.data.row_tally import RowTally
from solar_plugins.errors import ArgsError, CheckpointError, DataError, SolarError
from solar_plugins.evaluation.held_out import (
    Question,
    ask,
    checked_prompts,
    first_questions,
    held_out_answers,
    held_out_pairs,
    held_out_path,
    read_texts,
    require_known_tokens,
)
from solar_plugins.evaluation.sdpo_order import encoded_pairs, find_file
from solar_plugins.recipe import parse_recipe, read_recipe
from solar_plugins.report.stages import Stage

END = 1


@pytest.fixture
def stages(trained_chain, tmp_path):
    """The stages as `find_stages` gives them, as far as they matter here."""
    recipes = {path.stem.removeprefix("solar_"): path for path in trained_chain[:3]}
    found = [Stage(name, tmp_path, read_recipe(path)) for name, path in recipes.items()]
    return [*found, Stage("mean", tmp_path / "mean")]


def with_keys(stages, place, **keys):
    """The stages, one of them with other keys in its recipe."""
    changed = list(stages)
    changed[place] = replace(changed[place], recipe=changed[place].recipe.model_copy(update=keys))
    return changed


@pytest.fixture
def tokenizers(stages, tokenizer):
    return {stage.name: tokenizer for stage in stages}


def rows_of(stage, number=0):
    return stage.recipe.test_datasets[number]["path"]


def write(path, rows):
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_eval_responses_of_the_first_stage_that_has_any_as_in_training(stages, tokenizers, tokenizer):
    found = held_out_answers(stages, tokenizers)

    assert found.stage == "sft"
    assert len(found.examples) == 4
    prompt, answer = "### User:\nWho came by?\n\n### Assistant:\n", "The wolf."
    ids, labels = found.examples[2].tokens
    assert ids == [*tokenizer(prompt + answer)["input_ids"], END]
    assert tokenizer.decode([label for label in labels if label != IGNORED_LABEL]) == answer + "</s>"
    assert labels.index(next(label for label in labels if label >= 0)) == len(tokenizer(prompt)["input_ids"])
    assert max(len(answer.tokens.input_ids) for answer in found.examples) <= 64
    [words] = found.sets
    assert "as alpaca: 5 rows read, 4 kept, 1 dropped: 1 longer than sequence_len 64 (row 3)" in words


def test_questions_are_the_first_instructions_that_fit(stages, tokenizers):
    write(
        rows_of(stages[1]),
        [
            {"instruction": "Too long. " * 40, "output": "x"},
            {"instruction": "Why?", "output": "So."},
            {"instruction": "And how?", "input": "Slowly", "output": "So."},
        ],
    )

    assert first_questions(held_out_answers(stages, tokenizers).examples) == (
        Question("Why?", "### User:\nWhy?\n\n### Assistant:\n"),
        Question("And how?\n\nSlowly", "### User:\nAnd how?\n\nSlowly\n\n### Assistant:\n"),
    )


def test_all_sets_of_the_stage_count(stages, tokenizers, tmp_path):
    write(tmp_path / "more.jsonl", [{"query": "1 + 1?", "response": "2"}])
    more = {"path": str(tmp_path / "more.jsonl"), "ds_type": "json", "split": "train", "type": "solar_plugins.metamath"}
    stages = with_keys(stages, 1, test_datasets=[*stages[1].recipe.test_datasets, more])

    found = held_out_answers(stages, tokenizers)

    assert len(found.examples) == 5
    assert [words.split(": ")[0].split(" as ")[1] for words in found.sets] == ["alpaca", "metamath"]


def test_answers_are_truncated_as_in_axolotl(stages, tokenizers, tokenizer):
    write(rows_of(stages[1]), [{"instruction": "Why?", "output": "Once upon a time."}])
    room = len(tokenizer("### User:\nWhy?\n\n### Assistant:\n")["input_ids"]) + 2
    stages = with_keys(stages, 1, excess_length_strategy="truncate", sequence_len=room)

    [(_, _, _, (ids, labels), *_)] = held_out_answers(stages, tokenizers).examples

    assert len(ids) == room
    assert [label for label in labels if label >= 0] == tokenizer("Once upon", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_eval_pairs_of_the_first_stage_that_has_any(stages, tokenizers, tokenizer, method):
    stages = with_keys(stages, 2, rl=method)

    found = held_out_pairs(stages, tokenizers)

    assert found.stage == "dpo"
    prompt = "### System:\nBe brief.\n\n### User:\nOf what was the house?\n\n### Assistant:\n"
    for answer, expected in zip(found.examples[1][1:3], ("Straw.", "Of bricks and of straw."), strict=True):
        assert answer.tokens.input_ids == [*tokenizer(prompt + expected)["input_ids"], END]
        assert tokenizer.decode([label for label in answer.tokens.labels if label >= 0]) == expected + "</s>"
    assert [pair.cut for pair in found.examples] == [False, False]


def test_training_report_and_sdpo_order_encode_rows_the_same(stages, tokenizers, tokenizer, tmp_path):
    """With the seed that all three take where none is named."""
    completions = [{"response": f"Because of {n}.", "overall_score": n} for n in range(9)]
    path = tmp_path / "scores.jsonl"
    write(path, [{"instruction": f"Why {n}?", "completions": completions} for n in range(20)])
    kind = {"type": "solar_plugins.ultrafeedback_scores"}
    entry = {"path": str(path), "ds_type": "json", "split": "train", **kind}
    stages = with_keys(stages, 2, test_datasets=[entry], datasets=[entry], seed=None)

    reported = held_out_pairs(stages, tokenizers).examples
    file = find_file(path, None)
    encoder = make_encoder(tokenizer, "test")
    rows = RowEncoder(file.formatter, encoder, 128, truncate=True)
    ordered = encoded_pairs(file, frozenset(range(20)), rows, RowTally("f", "scores"))
    [source, _] = formatted_datasets(stages[2].recipe)
    trained = TrainingRecords(row_encoder(stages[2].recipe, source, encoder))
    texts, _ = read_set(load_rows(stages[2].recipe, source, encoder), trained, "here", None)

    assert [*ordered] == [*reported]
    for pair, row in zip(reported, texts, strict=True):
        assert row == {
            "prompt": pair.chosen.prompt,
            "chosen": pair.chosen.completion,
            "rejected": pair.rejected.completion,
        }
        assert pair.rejected.tokens.input_ids == tokenizer(row["prompt"] + row["rejected"])["input_ids"]
    assert len({row["rejected"] for row in texts}) > 3, "the choice is a random one"


def test_pairs_that_training_leaves_out_are_left_out(stages, tokenizers):
    write(
        rows_of(stages[2]),
        [
            {"question": "Why?", "chosen": "So it is. " * 60, "rejected": "No."},
            {"question": "Why?", "chosen": "So.", "rejected": "No."},
        ],
    )

    found = held_out_pairs(stages, tokenizers)

    assert [pair.row for pair in found.examples] == [2]
    assert "2 rows read, 1 kept, 1 dropped: 1 longer than sequence_len 128 (row 1)" in found.sets[0]


def test_stages_without_test_datasets_have_none(stages, tokenizers):
    for place in (1, 2):
        stages = with_keys(stages, place, test_datasets=None)

    assert held_out_answers(stages, tokenizers) is held_out_pairs(stages, tokenizers) is None


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (
            {"path": "/absent.jsonl"},
            DataError,
            r"solar_sft.yml: test_datasets\[0\] \(/absent.jsonl\): cannot be loaded",
        ),
        ({"type": "solar_plugins.openorca"}, DataError, r"solar_sft.yml: .* has no column question"),
        ({"type": "solar_plugins.orca_dpo_pairs"}, ArgsError, r"solar_sft.yml: .*the recipe has no rl:"),
    ],
)
def test_an_unreadable_dataset_is_reported_with_its_recipe(stages, tokenizers, entry, error, message):
    stages = with_keys(stages, 1, test_datasets=[stages[1].recipe.test_datasets[0] | entry])

    with pytest.raises(error, match=message):
        held_out_answers(stages, tokenizers)


def test_a_dataset_of_bad_rows_is_rejected_as_in_training(stages, tokenizers):
    write(rows_of(stages[1]), [{"instruction": "Why?", "output": " "}, {"instruction": "Why?", "output": "So."}])

    with pytest.raises(DataError, match=r"solar_sft.yml: .*1 of 2 rows cannot be read as alpaca"):
        held_out_answers(stages, tokenizers)


def test_a_question_of_a_user_is_rendered_as_the_template_does(tokenizer):
    from solar_plugins.data.template import template_text

    [question] = ask(["Why?\nReally"])

    message = [{"role": "user", "content": "Why?\nReally"}]
    assert question.prompt == tokenizer.apply_chat_template(
        message, chat_template=template_text(), tokenize=False, add_generation_prompt=True
    )


def test_tokens_that_the_base_lacks_are_rejected(stages, tokenizers, tokenizer, own_tokenizer):
    own_tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})

    found = held_out_answers(stages, tokenizers | {"sft": own_tokenizer})

    require_known_tokens("sft", [answer.tokens for answer in found.examples], own_tokenizer)
    with pytest.raises(CheckpointError, match=r"^sft: .* the token 320, .*special_tokens"):
        require_known_tokens("sft", [answer.tokens for answer in found.examples], tokenizer)


def test_the_option_overrides_the_recipe(tmp_path):
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
def test_the_error_without_held_out_text_names_the_option(recipe, found):
    with pytest.raises(ArgsError, match=f"{found}.*--held-out FILE.jsonl"):
        held_out_path(parse_recipe(recipe), None)


def test_texts_are_read_in_order_without_blank_lines(tmp_path):
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
def test_a_file_without_texts_is_rejected(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SolarError, match=message):
        read_texts(tmp_path / name)


def test_a_few_bad_rows_are_dropped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' * 60 + b"\xff\n")

    assert read_texts(path) == ["good"] * 60
    assert "1 of 61 rows cannot be used, the first is row 61: the row is not UTF-8" in caplog.text


def test_given_prompts_or_the_first_words_of_three_texts():
    texts = ["a  short\ntext", "b " * 40, "c", "d"]

    assert checked_prompts(["mine", "and mine"], texts) == ("mine", "and mine")
    assert checked_prompts([], texts) == ("a short text", " ".join(["b"] * 12), "c")


def test_a_blank_prompt_is_rejected():
    with pytest.raises(ArgsError, match="prompt 2: ' ' is blank"):
        checked_prompts(["x", " "], [])


def test_a_prompt_that_is_not_utf_8_is_rejected():
    with pytest.raises(ArgsError, match=r"prompt 1: .*'\\udcff'.*UTF-8"):
        checked_prompts([b"caf\xff".decode("utf-8", "surrogateescape")], [])
