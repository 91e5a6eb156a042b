import pytest
import yaml

from solar_plugins.data.mixture_args import TASK_LISTS, read_mixture
from solar_plugins.errors import DataError

SET = {"path": "a.jsonl", "text_columns": "text"}
MIXTURE = {"output": "out", "sets": {"a": SET}}


def read(tmp_path, mixture):
    (tmp_path / "m.yml").write_text(yaml.safe_dump(mixture))
    return read_mixture(tmp_path / "m.yml")


def test_defaults(tmp_path):
    args = read(tmp_path, MIXTURE)
    assert args.model_dump() == {
        "output": "out",
        "keep_shares": False,
        "decontaminate": None,
        "sets": {
            "a": {
                "path": ["a.jsonl"],
                "rows": None,
                "seed": 42,
                "text_columns": ["text"],
                "task_column": None,
                "exclude_tasks": None,
            }
        },
    }
    against = [{"path": "b.jsonl", "columns": "question"}]
    assert read(tmp_path, MIXTURE | {"decontaminate": {"against": against}}).decontaminate.ngram == 13


def test_the_ten_tasks_by_name_of_their_list(tmp_path):
    args = read(tmp_path, {"output": "o", "sets": {"a": SET | {"task_column": "task", "exclude_tasks": "solar_flan"}}})
    assert args.sets["a"].exclude_tasks == list(TASK_LISTS["solar_flan"])
    # The paper's table, sorted.
    assert sorted(TASK_LISTS["solar_flan"]) == [
        "ai2_arc/ARC-Challenge:1.0.0",
        "ai2_arc/ARC-Easy:1.0.0",
        "cot_gsm8k",
        "cot_gsm8k_ii",
        "drop:2.0.0",
        "hellaswag:1.1.0",
        "task1389_hellaswag_completion",
        "task228_arc_answer_generation_easy",
        "task229_arc_answer_generation_hard",
        "winogrande:1.1.0",
    ]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"outptu": "x", **MIXTURE}, r"m\.yml: outptu: unknown key; did you mean output\?"),
        ({"sets": {"a": SET}}, r"m\.yml: output: missing"),
        ({"output": "o", "sets": {}}, r"m\.yml: sets: \{\} is not allowed"),
        ({"output": "o", "sets": {"a": SET | {"row": 5}}}, r"sets\.a\.row: unknown key; did you mean rows\?"),
        (
            {"output": "o", "sets": {"a": SET | {"rows": 0}}},
            r"sets\.a\.rows: 0 is not allowed; expected a value greater",
        ),
        ({"output": "o", "sets": {"a": {"path": "a.jsonl"}}}, r"sets\.a\.text_columns: missing"),
        ({"output": "o", "sets": {"a": SET | {"path": []}}}, r"sets\.a\.path: \[\] is not allowed"),
        ({"output": "o", "sets": {"../a": SET}}, r"sets\.\.\./a.*not allowed; String should match|sets.*\.\./a"),
        ({"output": "o", "sets": {"dropped": SET}}, r"dropped: .*dropped\.jsonl"),
        (
            {"output": "o", "sets": {"a": SET | {"task_column": "task", "exclude_tasks": "solr_flan"}}},
            r"sets\.a\.exclude_tasks: 'solr_flan' is not allowed; .*known: solar_flan",
        ),
        ({"output": "o", "sets": {"a": SET | {"exclude_tasks": ["x"]}}}, r"task_column and exclude_tasks"),
        ({"output": "o", "sets": {"a": SET | {"task_column": "x"}}}, r"task_column and exclude_tasks"),
        (MIXTURE | {"keep_shares": True}, r"keep_shares needs rows"),
        (MIXTURE | {"decontaminate": {"against": []}}, r"decontaminate\.against: \[\] is not allowed"),
        (
            MIXTURE | {"decontaminate": {"against": [{"path": "b.jsonl"}]}},
            r"decontaminate\.against\.0: .*columns: missing; expected",
        ),
        (
            MIXTURE | {"decontaminate": {"against": [{"path": "b.txt", "columns": "q"}]}},
            r"columns: a \.txt file has no columns",
        ),
        (MIXTURE | {"decontaminate": {"against": [{"path": "b.txt"}], "ngram": 0}}, r"decontaminate\.ngram: 0 is not"),
        (
            {"slices": [], "merge_method": "passthrough"},
            r"m\.yml: merge_method: .*mergekit file; expected .*mergekit-yaml",
        ),
        ({"base_model": "b", "datasets": []}, r"m\.yml: base_model: .*Axolotl recipe; expected"),
        ([1], r"m\.yml: holds a list"),
    ],
)
def test_invalid_mixtures(tmp_path, mixture, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, mixture)


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.yml: cannot be read"):
        read_mixture(tmp_path / "none.yml")
