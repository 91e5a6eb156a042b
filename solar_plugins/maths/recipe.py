"""The schema of a `solar maths` recipe, and the prompts that it names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from solar_plugins.endpoints.args import ServerArgs
from solar_plugins.errors import ArgsError, DataError
from solar_plugins.recipe import read_yaml
from solar_plugins.solar_block import invalid
from solar_plugins.storage.untrusted import read_text

PROMPTS: Mapping[str, str] = {
    "rephrase_question": (
        "Below is a mathematics problem. Write the same problem in other words.\n"
        "Keep every number, every condition and the quantity that is asked for. Do not solve it, do not give its "
        "answer, and add no hints. Reply with the new problem only.\n\n"
        "Problem:\n{question}"
    ),
    "rephrase_answer": (
        "Below are a mathematics problem and a correct solution. Write the solution in other words.\n"
        "Reason step by step in complete sentences, keep all calculations correct, and reach the same final answer. "
        "Do not mention the solution that you were given. End with a line of the form\n"
        "The answer is: <final answer>\n\n"
        "Problem:\n{question}\n\nSolution:\n{answer}"
    ),
    "solve": (
        "Solve the mathematics problem below. Reason step by step, then end with a line of the form\n"
        "The answer is: <final answer>\n\n"
        "Problem:\n{question}"
    ),
    "statement": (
        "Below is a mathematics problem in which one number was replaced by the unknown {unknown}, and the answer to "
        "it. Rewrite the problem as a description that states the answer as a fact and asks nothing.\n"
        "Keep {unknown} as it is, and keep every number. Do not work out {unknown}. Reply with the description only.\n"
        "\nProblem:\n{question}\n\nAnswer: {final_answer}"
    ),
    "self_verification": "{statement}\nWhat is the value of the unknown {unknown}?",
    "fobar": "{question}\nThe answer to this problem is {final_answer}. What is the value of the unknown {unknown}?",
}
"""By name: what is sent to the model. ``self_verification`` and ``fobar`` are the backward questions themselves."""

PLACEHOLDERS: Mapping[str, frozenset[str]] = {
    "rephrase_question": frozenset({"question"}),
    "rephrase_answer": frozenset({"question", "answer"}),
    "solve": frozenset({"question"}),
    "statement": frozenset({"question", "final_answer", "unknown"}),
    "self_verification": frozenset({"statement", "unknown"}),
    "fobar": frozenset({"question", "final_answer", "unknown"}),
}
"""What each prompt must contain, in braces. Other braces are left as they are."""

type Kind = Literal["rephrase", "rephrase_question", "rephrase_answer", "solve", "self_verification", "fobar"]


class Prompt:
    """A prompt with placeholders, and a version that changes with its text.

    >>> Prompt("fobar", "{question} = {final_answer}, {x}").fill(question="3{x}", final_answer="4")
    '3{x} = 4, {x}'
    """

    def __init__(self, name: str, text: str) -> None:
        self.text = text
        self.version = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def fill(self, **values: str) -> str:
        """The prompt with its placeholders replaced; braces in the values stay as they are."""
        return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), self.text)


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(min_length=1)]


class SeedsArgs(_Block):
    """The problems to start from."""

    path: Texts = Field(
        description="a file of rows, or several in order (.jsonl, .json or .parquet), or the hub id of a dataset"
    )
    files: Texts | None = Field(None, description="with a hub id: patterns of its files, such as '*/train-*.parquet'")
    revision: str | None = Field(None, min_length=1, description="with a hub id: branch, tag or commit")
    question: str = Field("question", min_length=1, description="the column with the problem")
    answer: str = Field("answer", min_length=1, description="the column with the worked solution")
    final_answer: str | None = Field(
        None, min_length=1, description="the column with the final answer; default: found in the solution"
    )
    rows: int | None = Field(None, ge=1, description="at most this many problems, sampled with the seed; default: all")
    license: str = Field(min_length=1, description="license of the problems, for the card of the result, such as mit")

    @property
    def hub_id(self) -> str | None:
        """The dataset on the hub; None for local files."""
        return self.path[0] if self.files else None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.files and len(self.path) > 1:
            raise ValueError("files: belongs to one hub id, but path names several; remove files")
        if self.revision and not self.files:
            raise ValueError("revision: local files have none; remove it, or add files for a hub id")
        if not self.files and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", one := self.path[0]) and not Path(one).exists():
            known = (".jsonl", ".json", ".ndjson", ".parquet", ".gz", ".bz2", ".xz", ".zst", ".lz4")
            if not one.endswith(known):
                raise ValueError(f"path: {one} looks like a hub id; add files, such as files: '*/train-*.parquet'")
        return self


class EndpointArgs(ServerArgs):
    """Where requests go."""

    license: str | None = Field(None, min_length=1, description="license of the model's answers, for the card")
    send_seed: bool = Field(True, description="send a seed with each request; false for endpoints that reject the key")


class SamplingArgs(_Block):
    """How the model generates."""

    temperature: float = Field(0.7, ge=0, description="0 gives the same text for every sample")
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(1024, ge=1, description="of one reply; a reply that reaches it is dropped as cut off")
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the name that the endpoint uses for it"
    )


class KindArgs(_Block):
    """One kind of augmentation."""

    samples: int = Field(1, ge=1, description="rows to try for each problem")
    votes: int = Field(1, ge=1, description="solutions that are sampled for a row")
    agree: int = Field(1, ge=1, description="how many of them must reach the right answer; the first such one is kept")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.agree > self.votes:
            raise ValueError(f"agree: {self.agree} of {self.votes} votes; expected at most as many as votes")
        return self


class LimitsArgs(_Block):
    """When to stop asking, counted over all answers in the store."""

    requests: int | None = Field(None, ge=1, description="answered requests")
    tokens: int | None = Field(None, ge=1, description="tokens, prompts included")
    cost: float | None = Field(None, gt=0, description="in the currency of price")


class PriceArgs(_Block):
    """What the endpoint charges, for the report and for limits.cost."""

    input: float = Field(ge=0, description="for a million prompt tokens")
    output: float = Field(ge=0, description="for a million generated tokens")
    currency: str = Field("USD", min_length=1)

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class ChecksArgs(_Block):
    """Which texts are dropped, in addition to wrong, empty, cut off and refused ones."""

    too_near: float = Field(
        0.9, gt=0, le=1, description="similarity to the original at which a rephrased text is a copy (word pairs)"
    )
    too_far: float = Field(
        0.15, ge=0, lt=1, description="similarity to the original below which a rephrased question strays (words)"
    )
    reasoning: int = Field(5, ge=0, description="words that a solution has at least before its final answer")
    numbers: bool = Field(True, description="a rephrased question keeps every number")
    leaks: bool = Field(True, description="a rephrased question does not give the answer away")
    language: bool = Field(True, description="texts are in the language of the problem")


class MathsArgs(_Block):
    """The content of a recipe for `solar maths`."""

    seeds: SeedsArgs
    endpoint: EndpointArgs
    kinds: dict[Kind, KindArgs] = Field(min_length=1, description="what is generated, by name")
    sampling: SamplingArgs = Field(default_factory=lambda: SamplingArgs.model_validate({}))
    prompts: dict[str, str] = Field(
        default_factory=dict, description="files that replace a prompt, by its name, relative to the recipe"
    )
    seed: int = Field(42, ge=0, description="random seed for sampling problems, for masked numbers and for requests")
    checks: ChecksArgs = Field(default_factory=lambda: ChecksArgs.model_validate({}))
    limits: LimitsArgs = Field(default_factory=lambda: LimitsArgs.model_validate({}))
    price: PriceArgs | None = None
    output: str = Field(min_length=1, description="the folder to write")
    store: str | None = Field(
        None, min_length=1, description="SQLite file with all answers, on a local disk; default: OUTPUT.sqlite"
    )

    @property
    def store_path(self) -> Path:
        """The file with the answers."""
        return Path(self.store or f"{self.output.rstrip('/')}.sqlite")

    @field_validator("kinds", mode="before")
    @classmethod
    def _defaults(cls, kinds: Any) -> Any:
        return {name: {} if one is None else one for name, one in kinds.items()} if isinstance(kinds, dict) else kinds

    @field_validator("prompts")
    @classmethod
    def _known_prompts(cls, prompts: dict[str, str]) -> dict[str, str]:
        for name in prompts.keys() - PROMPTS.keys():
            raise ValueError(f"{name}: unknown prompt; known: {', '.join(PROMPTS)}")
        return prompts

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.limits.cost is not None and self.price is None:
            raise ValueError("limits.cost needs price: {input: ..., output: ...}")
        return self


def read_maths(path: Path) -> tuple[MathsArgs, dict[str, Prompt]]:
    """Read and validate a recipe and its prompts.

    Raises:
        DataError: A file cannot be read, a key is unknown or missing, a value is invalid, or a prompt lacks a
            placeholder.
    """
    try:
        content = read_yaml(path)
    except ArgsError as error:
        raise DataError(str(error)) from None
    try:
        args = MathsArgs.model_validate(content)
    except ValidationError as error:
        raise DataError(invalid_maths(error, f"{path}: ")) from None
    return args, {name: _prompt(name, args.prompts.get(name), path) for name in PROMPTS}


def invalid_maths(error: ValidationError, where: str) -> str:
    """The message for a recipe that `MathsArgs` rejects: a line for each key.

    Args:
        error: Pydantic's.
        where: Prefix of each key.
    """
    blocks = (field.annotation for field in MathsArgs.model_fields.values())
    parts = {
        name: block.model_fields
        for name, block in zip(MathsArgs.model_fields, blocks, strict=True)
        if isinstance(block, type) and issubclass(block, BaseModel)
    }
    parts |= {"price": PriceArgs.model_fields, "kinds": KindArgs.model_fields}
    return invalid(error, where, MathsArgs.model_fields, parts)


def _prompt(name: str, file: str | None, recipe: Path) -> Prompt:
    if file is None:
        return Prompt(name, PROMPTS[name])
    fix = f"give a text file for the prompt {name}, relative to {recipe.parent}"
    text = read_text(recipe.parent / file, error=DataError, fix=fix).strip()
    if missing := sorted(one for one in PLACEHOLDERS[name] if f"{{{one}}}" not in text):
        raise DataError(
            f"{recipe.parent / file}: the prompt {name} lacks {', '.join(f'{{{one}}}' for one in missing)}, which "
            "stands for a text of the problem; add it"
        )
    return Prompt(name, text)
