"""The lineage of a model: a file next to its config, read as untrusted, and what is known without one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from solar_plugins.errors import CheckpointError, SolarError
from solar_plugins.lineage.public import MAX_RECIPE_CHARACTERS, MERGED, is_hub_id, public_name
from solar_plugins.solar_block import invalid
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.cards import CARD, read_card, split_card
from solar_plugins.storage.untrusted import leads_out, read_json_object
from solar_plugins.upscaling.base_model import CONFIG
from solar_plugins.upscaling.checkpoint import CACHE_PREFIX
from solar_plugins.upscaling.hub import fetch
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import MARKER, read_marker
from solar_plugins.upscaling.provenance import read_record, unreadable_record
from solar_plugins.versions import package_versions

LINEAGE_FILE = "solar_lineage.json"
MAX_STAGES = 200


def _is_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected a text without control characters")
    return text


type Name = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_is_printable)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Record):
    """A model or a dataset that something was made from."""

    name: Name
    """A hub id; or of something local its relative path as the user wrote it, or the last part of an absolute one."""
    revision: Name | None = None
    """Of a hub id: as the user named it, or the commit."""
    on_hub: bool = False

    @model_validator(mode="after")
    def _is_id(self) -> Self:
        if self.on_hub and not is_hub_id(self.name, organisation=False):
            raise ValueError("expected a hub id such as org/name, because on_hub is true")
        return self

    @property
    def short(self) -> str:
        """For people: a hub id, or the last part of a local path; ``merged`` has the folder around it in front.

        >>> Source(name="outputs/sft").short, Source(name="outputs/sft/merged").short
        ('sft', 'sft-merged')
        """
        parts = self.name.split("/")
        return self.name if self.on_hub else "-".join(parts[-2:] if parts[-1] == MERGED else parts[-1:])


class License(_Record):
    """A license, as a card's metadata has it."""

    id: Name
    name: Name | None = None
    link: Name | None = None
    source: Name
    """The model it was inherited from."""

    @property
    def fields(self) -> dict[str, str]:
        """For a card's metadata."""
        found = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in found.items() if value}


class Stage(_Record):
    """One step from which a model resulted."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    """``upscale``, ``pretrain``, ``sft``, a preference method such as ``dpo``, ``merge_lora`` or ``merge``."""
    result: Source
    """The model or adapter that it wrote."""
    sources: tuple[Source, ...] = Field(default=(), max_length=100)
    """The models that it started from: one, or those that were merged."""
    datasets: tuple[Source, ...] = Field(default=(), max_length=1000)
    adapter: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] | None = None
    """``lora`` or ``qlora`` if an adapter was trained, or merged into the model."""
    recipe: Annotated[str, Field(max_length=MAX_RECIPE_CHARACTERS)] | None = None
    """The recipe that was run, with command-line overrides, as YAML: see `public.public_recipe`."""
    versions: dict[Name, Name] = Field(default={}, max_length=100)
    """Of the packages that ran it."""


class Lineage(_Record):
    """What a model was made from."""

    format: Literal[1] = 1
    bases: tuple[Source, ...] = Field(default=(), max_length=100)
    """The models at the start: the base, and those that layers or weights were taken from too."""
    plan: dict[str, Any] | None = None
    """The layer plan (`LayerPlan.to_dict`); None if the model is not an upscaled one, or its layers were merged."""
    stages: tuple[Stage, ...] = Field(default=(), max_length=MAX_STAGES)
    """In order. Those of models that were merged come one model after the other."""
    earlier_unknown: bool = False
    """Whether the model was trained before in ways that nobody recorded."""
    licenses: tuple[License, ...] = Field(default=(), max_length=100)
    """The licenses of its bases that differ; the first is the one that the card states."""
    unlicensed: tuple[Name, ...] = Field(default=(), max_length=100)
    """Those of its bases that state no license."""
    language: tuple[Name, ...] = Field(default=(), max_length=500)

    @field_validator("plan")
    @classmethod
    def _is_plan(cls, plan: dict[str, Any] | None) -> dict[str, Any] | None:
        if plan is not None:
            try:
                LayerPlan.from_dict(plan)
            except (KeyError, TypeError) as error:
                raise ValueError(f"expected a layer plan ({type(error).__name__}: {error})") from None
        return plan

    @property
    def layer_plan(self) -> LayerPlan | None:
        """The plan, read."""
        return None if self.plan is None else LayerPlan.from_dict(self.plan)

    @property
    def result(self) -> Source | None:
        """What the last stage wrote."""
        return self.stages[-1].result if self.stages else None

    @property
    def is_adapter(self) -> bool:
        """Whether it is the lineage of an adapter that was not merged."""
        return bool(self.stages) and self.stages[-1].adapter is not None and self.stages[-1].kind != "merge_lora"

    @property
    def hub_parents(self) -> list[Source]:
        """The nearest models on the hub that this one was made from: the metadata ``base_model`` of its card.

        A stage that started from a local model stands for what that model was made from. Of a merged adapter only
        its base counts: several would be a merge of models for the Hub.
        """
        parents: list[dict[str, Source]] = []  # Of each stage, by name. A file of others may name a stage many times.
        at_start = {base.name: base for base in self.bases if base.on_hub}
        for number, stage in enumerate(self.stages):
            found: dict[str, Source] = {}
            for source in stage.sources[:1] if stage.kind == "merge_lora" else stage.sources:
                earlier = [i for i in range(number) if self.stages[i].result.name == source.name]
                written = self.stages[earlier[-1]].result if earlier else source
                if source.on_hub or written.on_hub:
                    found[written.name] = source if source.on_hub else written
                else:
                    found |= parents[earlier[-1]] if earlier else at_start
            parents.append(found or at_start)
        return [*(parents[-1] if parents else at_start).values()]

    def then(self, stage: Stage) -> Lineage:
        """This lineage with one more stage."""
        return self.model_copy(update={"stages": (*self.stages, stage)[-MAX_STAGES:]})


def read(folder: Path, named: Source | None = None) -> Lineage | None:
    """The lineage of the model or adapter in a folder; None if it says nothing about it.

    Without a lineage file the record in config.json gives the base and the plan, and the stages stay unknown. An
    upscaled checkpoint that is not trained yet (`marker.MARKER`) has the lineage file of its base, if it has one.

    Args:
        folder: The folder.
        named: The model as the user named it, if not by the folder.

    Raises:
        CheckpointError: The file, or the record in config.json, cannot be read.
        OSError: A file cannot be read.
    """
    path = folder / LINEAGE_FILE
    found = None
    if path.exists() and not leads_out(path, folder):
        try:
            found = Lineage.model_validate(read_json_object(path))
        except ValidationError as error:
            lines = "; ".join(invalid(error).splitlines()[:5])
            raise CheckpointError(
                f"{path}: not a lineage of this version of solar_plugins ({lines}); remove the file, or restore it"
            ) from None
    untrained = _is_untrained(folder)
    if (found is not None and not untrained) or not (folder / CONFIG).exists():
        return found
    recorded = of_config(read_json_object(folder / CONFIG))
    if recorded is None:
        return found
    base = recorded.stages[0].sources[0]
    if not untrained:
        return with_license(recorded.model_copy(update={"earlier_unknown": True}), folder, base.short)
    in_cache = folder.name.startswith(CACHE_PREFIX)
    result = named or (recorded.stages[0].result if in_cache else model_source(str(folder)))
    stage = recorded.stages[0].model_copy(update={"result": result})
    if found is not None:  # That of the base.
        stage = stage.model_copy(update={"sources": (found.result or base, *stage.sources[1:])})
        return found.then(stage).model_copy(update={"plan": recorded.plan})
    return with_license(recorded.model_copy(update={"stages": (stage,)}), folder, base.short)


def of_config(config: Mapping[str, Any]) -> Lineage | None:
    """The lineage that the record in a model's config gives, without license; None without a record.

    Raises:
        CheckpointError: The record cannot be read.
    """
    record = read_record(config)
    if record is None:
        return None
    plan = record.plan
    models = [(record.base_name, record.base_revision), *((one.name, one.revision) for one in plan.donors)]
    try:
        bases = tuple(Source(name=name, revision=revision, on_hub=bool(revision)) for name, revision in models)
    except ValidationError as error:
        raise unreadable_record(error) from None
    result = Source(name=f"{bases[0].short.rpartition('/')[2]}-{len(plan)}-layers")
    donors = tuple(dict.fromkeys(one.short for one in bases[1:]))  # An upscaled checkpoint has the card of its base.
    stages = (Stage(kind="upscale", result=result, sources=bases),)
    return Lineage(bases=bases, plan=plan.to_dict(), stages=stages, unlicensed=donors)


def _is_untrained(folder: Path) -> bool:
    try:
        read_marker(folder)
    except SolarError:
        return False
    return True


def with_license(lineage: Lineage, folder: Path | None, source: str) -> Lineage:
    """The lineage with the license and the languages that a model's card states, or with the fact that it has none.

    Args:
        lineage: The lineage.
        folder: The model's; None if it is not known.
        source: Its name.
    """
    front, _ = split_card(read_card(folder) if folder else "")
    licenses, unlicensed = list(lineage.licenses), list(lineage.unlicensed)
    try:
        found = License(
            id=front["license"], name=front.get("license_name"), link=front.get("license_link"), source=source
        )
    except (KeyError, ValidationError):
        unlicensed = [*dict.fromkeys([*unlicensed, source])]
    else:
        licenses += [found] if found.fields not in [one.fields for one in licenses] else []
    languages = front.get("language") or ()
    named = [languages] if isinstance(languages, str) else languages if isinstance(languages, list) else []
    language = (*lineage.language, *(one for one in named if isinstance(one, str) and one.isprintable() and one))
    return lineage.model_copy(
        update={"licenses": (*licenses,), "unlicensed": (*unlicensed,), "language": (*dict.fromkeys(language),)}
    )


def write(folder: Path, lineage: Lineage) -> None:
    """Write the lineage of the model or adapter in a folder.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = lineage.model_dump(exclude_defaults=True) | {"format": lineage.format}
    write_file(folder / LINEAGE_FILE, (json.dumps(content, indent=1) + "\n").encode())


def model_source(name: str, revision: str | None = None) -> Source:
    """A model or dataset as a user named it: what is not a folder and looks like a hub id is on the hub."""
    if is_hub_id(name) and not Path(os.path.expanduser(name)).exists():
        return Source(name=name, revision=revision, on_hub=True)
    return Source(name=public_name(name))


class FoundModel(NamedTuple):
    """A model that a user named."""

    source: Source
    folder: Path | None
    """Where its config and card are; None if it is neither a folder nor looks like a hub id."""
    lineage: Lineage | None


def find_model(name: str, revision: str | None = None) -> FoundModel:
    """A model that a user named, and what it was made from. Of a hub model four small files are downloaded.

    Raises:
        CheckpointError: A hub model is neither in the cache nor can be downloaded; or as `read`.
        OSError: As `read`.
    """
    source = model_source(name, revision)
    if source.on_hub:
        folder = fetch(name, revision, [CONFIG, CARD, LINEAGE_FILE, MARKER])
        source = source.model_copy(update={"revision": revision or folder.name})
        return FoundModel(source, folder, read(folder, source))
    folder = Path(os.path.expanduser(name))
    return FoundModel(source, folder, read(folder)) if folder.is_dir() else FoundModel(source, None, None)


def versions_of_stage(*packages: str) -> dict[str, str]:
    """The versions of this package and of those that ran a stage, as far as they are installed."""
    return {name: number for name, number in package_versions().items() if name in ("solar_plugins", *packages)}


def merged(lineages: Iterable[Lineage]) -> Lineage:
    """The lineages of several models as one: their stages one after the other, what is common once."""
    found = list(lineages)
    plans = [one.plan for one in found]
    licenses: dict[str, License] = {}
    for one in (license_ for lineage in found for license_ in lineage.licenses):
        licenses.setdefault(json.dumps(one.fields, sort_keys=True), one)

    def united(key: str) -> tuple[Any, ...]:
        parts = [part for one in found for part in getattr(one, key)]
        return tuple(part for number, part in enumerate(parts) if part not in parts[:number])

    return Lineage(
        bases=united("bases"),
        plan=plans[0] if plans and all(plan == plans[0] for plan in plans) else None,
        stages=united("stages")[-MAX_STAGES:],
        earlier_unknown=any(one.earlier_unknown for one in found),
        licenses=tuple(licenses.values()),
        unlicensed=united("unlicensed"),
        language=united("language"),
    )
