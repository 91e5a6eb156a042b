"""A pipeline file: the stages of a chain in order, and how each is launched.

A stage is an Axolotl recipe, a merge, a mixture, or any command with declared inputs and outputs. Files of stages are
named relative to the pipeline file; every other path is relative to the working directory, as paths in recipes are.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from solar_plugins.errors import ArgsError
from solar_plugins.recipe import read_yaml
from solar_plugins.solar_block import invalid

type Kind = Literal["recipe", "merge", "mixture", "command"]
KINDS: tuple[Kind, ...] = ("recipe", "merge", "mixture", "command")


class StageArgs(BaseModel):
    """One stage, as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", description="unique; letters, digits, _ . -")
    recipe: str | None = Field(None, min_length=1, description="an Axolotl recipe, relative to this file")
    merge: str | None = Field(None, min_length=1, description="a mergekit recipe, relative to this file")
    mixture: str | None = Field(None, min_length=1, description="a file for `solar mix`, relative to this file")
    command: str | None = Field(None, min_length=1, description="any command; it needs `outputs`")
    launch: str | None = Field(
        None, description="text before the command, such as `srun torchrun --nproc_per_node 8`; default: the pipeline's"
    )
    overrides: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="keys of the recipe with other values: {learning_rate: 3.0e-7}"
    )
    output: str | None = Field(None, min_length=1, description="the folder that a merge writes")
    inputs: list[str] = Field(default_factory=list, description="files and folders that a command reads")
    outputs: list[str] = Field(default_factory=list, description="files and folders that a command writes")

    @property
    def kind(self) -> Kind:
        """Which of the four it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"names {' and '.join(given) or 'nothing to run'}; expected one of {', '.join(KINDS)}")
        kind = given[0]
        if (kind == "merge") != (self.output is not None):
            raise ValueError(
                "a merge needs output, the folder to write" if kind == "merge" else "only a merge has output"
            )
        if kind == "command" and not self.outputs:
            raise ValueError("a command needs outputs, the files and folders that it writes")
        if kind != "command" and (self.inputs or self.outputs):
            raise ValueError(f"inputs and outputs of a {kind} are read from its file; declare them for commands only")
        if kind != "recipe" and self.overrides:
            raise ValueError("only a recipe has overrides")
        return self

    @field_validator("launch", "command")
    @classmethod
    def _splits(cls, value: str | None) -> str | None:
        try:
            shlex.split(value or "")
        except ValueError as error:
            raise ValueError(f"cannot be split into words ({error}); close every quote") from None
        return value


class PipelineArgs(BaseModel):
    """The content of a pipeline file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch: str = Field("accelerate launch", description="text before `-m axolotl.cli.train RECIPE`, for every recipe")
    records: str = Field(min_length=1, description="the folder for records and logs of runs")
    gpus: int | None = Field(None, ge=1, description="GPUs of all nodes, for `solar plan PIPELINE --memory`")
    gpu_memory: float | None = Field(None, ge=1, description="GB of memory of each GPU, for the same")
    stages: list[StageArgs] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _names_differ(cls, stages: list[StageArgs]) -> list[StageArgs]:
        names = [stage.name for stage in stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two stages are called {twice}; rename one")
        return stages


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, with its file read.

    Args:
        name: Unique in the pipeline.
        kind: What it is.
        file: The recipe, merge or mixture; None for a command.
        content: The keys of that file, with the stage's overrides; for a command the command itself.
        command: What is run, word by word.
        inputs: Files and folders that a command declares; those of other kinds are found in their content.
        outputs: Files and folders that it writes, relative to the working directory.
        overrides: Keys of its recipe with other values.
    """

    name: str
    kind: Kind
    file: Path | None
    content: Mapping[str, Any]
    command: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline file, read.

    Args:
        path: The file.
        records: The folder for records and logs.
        stages: In order.
        gpus: GPUs of all nodes that memory is estimated for; None: not stated.
        gpu_memory: GB of memory of each; None: not stated.
    """

    path: Path
    records: Path
    stages: tuple[Stage, ...]
    gpus: int | None = None
    gpu_memory: float | None = None


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline in a file; the files of its stages are read, and not checked yet.

    Raises:
        ArgsError: The file or one of a stage cannot be read, or a key is unknown, missing or has an impossible value.
    """
    try:
        args = PipelineArgs.model_validate(read_yaml(path))
    except ValidationError as error:
        parts = {"stages": StageArgs.model_fields}
        raise ArgsError(invalid(error, f"{path}: ", PipelineArgs.model_fields, parts)) from None
    stages = tuple(_read_stage(stage, path, args.launch) for stage in args.stages)
    _check_outputs(path, stages)
    return Pipeline(path, Path(os.path.expanduser(args.records)), stages, args.gpus, args.gpu_memory)


def holds_more(output: str) -> str | None:
    """What an output folder must not hold: the working directory or the home directory. None if it holds neither.

    Example:
        >>> holds_more("/"), holds_more("outputs/sft")
        ('the working directory', None)
    """
    place = Path(os.path.abspath(os.path.expanduser(output)))
    for what, kept in (("the working directory", Path.cwd()), ("the home directory", Path(os.path.expanduser("~")))):
        if place == kept or place in kept.parents:
            return what
    return None


def _check_outputs(pipeline: Path, stages: tuple[Stage, ...]) -> None:
    """Every stage has outputs of its own, which may be moved aside."""
    owners: dict[Path, str] = {}
    for stage in stages:
        for output in stage.outputs:
            place = Path(os.path.abspath(os.path.expanduser(output)))
            if held := holds_more(output):
                raise ArgsError(
                    f"{pipeline}: stage {stage.name}: output {output!r} holds {held}; expected a folder or file of "
                    "this stage alone, such as outputs/NAME"
                )
            if place in owners:
                raise ArgsError(
                    f"{pipeline}: stage {stage.name}: output {output!r} is also that of stage {owners[place]}; give "
                    "each stage its own"
                )
            owners[place] = stage.name


def is_pipeline(path: Path) -> bool:
    """Whether a YAML file is a pipeline: it has ``stages``, which no recipe has.

    Raises:
        ArgsError: The file cannot be read.
    """
    return "stages" in read_yaml(path)


def report_stages(pipeline: Pipeline) -> tuple[Path, ...]:
    """What `solar report` takes for a pipeline: the recipe that upscales, then each later model.

    A stage with overrides is its output directory, because its recipe alone names another one.

    Raises:
        ArgsError: The first recipe does not upscale.
    """
    models = [stage for stage in pipeline.stages if stage.kind in ("recipe", "merge")]
    first = models[0] if models else None
    if first is None or first.kind != "recipe" or "init" not in (first.content.get("solar") or {}):
        found = f"{first.name} is a {first.kind}" if first else "there is none"
        raise ArgsError(
            f"{pipeline.path}: the first model of a report comes from a recipe with solar.init, but {found} without it"
        )
    return tuple(
        stage.file if stage.kind == "recipe" and stage.file and not stage.overrides else Path(stage.outputs[0])
        for stage in models
    )


def _read_stage(args: StageArgs, pipeline: Path, launch: str) -> Stage:
    words = tuple(shlex.split(args.launch if args.launch is not None else launch if args.kind == "recipe" else ""))
    if args.command is not None:
        command = (*words, *shlex.split(args.command))
        content = {"command": args.command}
        return Stage(args.name, "command", None, content, command, tuple(args.inputs), tuple(args.outputs))
    name = getattr(args, args.kind)
    file = pipeline.parent / name
    try:
        content = dict(read_yaml(file)) | args.overrides
    except ArgsError as error:
        raise ArgsError(f"{pipeline}: stage {args.name}: {error}") from None
    if args.recipe is not None:
        options = [f"--{key}={value}" for key, value in args.overrides.items()]
        command = (*words, "-m", "axolotl.cli.train", str(file), *options)
        outputs = (str(content.get("output_dir") or "./model-out"),)
    elif args.output is not None:
        command, outputs = (*words, "mergekit-yaml", str(file), args.output), (args.output,)
    else:
        if not isinstance(content.get("output"), str):
            raise ArgsError(f"{file}: output: {content.get('output')!r}; expected the folder that a mixture writes")
        command, outputs = (*words, "solar", "mix", str(file)), (content["output"],)
    return Stage(args.name, args.kind, file, content, command, (), outputs, args.overrides)
