"""The gallery: one HTML page of recipes, with the plan, the memory and what was run of each.

A folder of recipes may have a ``gallery.json`` that states what no recipe does: which of them were run, where, when and
with what result, and the configs of their bases, so that plans and memory are known without the Hub. Nothing is
downloaded: without the config of a base, layers and memory are "unknown".
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from solar_plugins.errors import ArgsError, SolarError
from solar_plugins.extras import require
from solar_plugins.logs import logger
from solar_plugins.memory.memory_report import FREE_SHARE, MemoryReport, memory_of_recipe
from solar_plugins.memory.recipe_model import MAX_RECIPE_BYTES, model_of, start_of
from solar_plugins.pipeline import PipelineArgs, StageArgs
from solar_plugins.plugins.recipe_packs import recipe_needs, recipe_packs, recipe_summary
from solar_plugins.recipe import Recipe, read_recipe, read_yaml
from solar_plugins.report.page import template
from solar_plugins.report.picture import DEPTH_COLORS, DONOR_COLORS
from solar_plugins.sharing.bundle import MANIFEST, Bundle, read_bundle
from solar_plugins.sharing.gpus import parse_gpus
from solar_plugins.sharing.secrets import in_file, in_value
from solar_plugins.sharing.sources import ORIGIN, YAML_FILES, layer_range, origin_of, stages_of
from solar_plugins.solar_block import invalid
from solar_plugins.storage.atomic import write_errors_explained, write_file
from solar_plugins.storage.untrusted import leads_out, read_json_object
from solar_plugins.text import format_bytes, printable
from solar_plugins.upscaling.base_model import CONFIG, find_config
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.strategies import plan_of

LOG = logger("gallery")

GALLERY_FILE = "gallery.json"
MAX_RECIPES = 500
MAX_TEXT = 300
"""Characters of a name or sentence on the page."""

STAGES = (
    "pipeline",
    "upscale",
    "pretrain",
    "maths",
    "mixture",
    "SFT",
    "DPO",
    "sDPO",
    "merge",
    "evaluation",
    "LoRA",
    "QLoRA",
)
"""What a recipe does, in the order of the page. Another ``rl`` is shown in capitals, after DPO."""

STATUSES = {"run": "run", "tested": "tested on a tiny model", "validated": "keys validated", "": "not stated"}
"""`Ran.status` in words, best first."""


class Ran(BaseModel):
    """What was run of a recipe, as its author states it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["run", "tested", "validated"] = Field(
        description="run: this file to its end; tested: its method and settings on a tiny model; validated: its keys"
    )
    machine: str = Field(default="", description="such as `8 x H100 80 GB`")
    date: datetime.date | None = Field(default=None, description="the day of the run: 2026-11-25")
    command: str = Field(default="", description="what ran it")
    note: str = Field(default="", description="anything else")
    results: dict[str, float | str] = Field(
        default_factory=dict, description="metrics with their units: {held-out loss (nats/token): '3.200'}"
    )


class GalleryFile(BaseModel):
    """The content of a ``gallery.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    bases: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="from base_model, as recipes have it, to the keys of its config.json"
    )
    recipes: dict[str, Ran] = Field(default_factory=dict, description="by path in this folder")
    gpus: dict[str, str] = Field(
        default_factory=dict, description="the GPUs that a recipe is for, such as 8xH100 or 1x24GB, by path"
    )


@dataclass(frozen=True)
class Entry:
    """A row of the page."""

    pack: str
    name: str
    """Path in the pack."""
    summary: str = ""
    needs: str = ""
    """Of the head comment."""
    stages: tuple[str, ...] = ()
    base: str = ""
    origin: str = ""
    """The base at the start of the chain of stages, if that is another one."""
    layers_before: int | None = None
    """Of the base that the recipe upscales."""
    layers: int | None = None
    plan: LayerPlan | None = None
    memory: MemoryReport | None = None
    unknown: str = ""
    """Why layers or memory are not known."""
    ran: Ran | None = None
    fetched_from: str = ""
    """The repository or folder that it was fetched from."""
    problem: str = ""
    """Why the file cannot be used."""


# --- collect


def gallery_of_packs() -> list[Entry]:
    """The recipes of all installed packs. One that cannot be read is logged and left out."""
    entries = list[Entry]()
    for name, pack in recipe_packs().items():
        try:
            entries += entries_of(pack.directory, name)
        except SolarError as error:
            LOG.warning("recipe pack %s is left out: %s", name, error)
    return entries


def entries_of(folder: Path, name: str | None = None) -> list[Entry]:
    """The recipes below a folder: by stage, those that were run first. Other YAML files are left out.

    Args:
        folder: Any folder: a pack, fetched recipes, a project.
        name: Of the pack; default: the folder's.

    Raises:
        ArgsError: It is not a folder, holds more than `MAX_RECIPES` YAML files, or its ``gallery.json`` is invalid.
    """
    if not folder.is_dir():
        raise ArgsError(f"{folder}: is not a folder; give a folder of recipes, or none for the installed ones")
    files = list(_files(folder))
    origins = {path.parent: origin_of(path.parent) for path in files if path.name == ORIGIN}
    bundles = {path.parent: _read_or_error(path.parent) for path in files if path.name == MANIFEST}
    recipes = [path for path in files if path.suffix in YAML_FILES]
    if len(recipes) > MAX_RECIPES:
        raise ArgsError(
            f"{folder}: {len(recipes):,} YAML files, expected at most {MAX_RECIPES:,}; give a smaller folder"
        )
    with TemporaryDirectory() as temporary:
        place = _Place(
            folder,
            name if name is not None else folder.resolve().name,
            read_gallery_file(folder),
            Path(temporary),
            bundles,
            origins,
        )
        progress = tqdm(recipes, "recipes", unit=" recipes", disable=None, delay=1, leave=False)
        entries = [entry for path in progress if (entry := _entry(path, place)) is not None]
    ranked = [*STATUSES]
    return sorted(
        entries,
        key=lambda entry: (
            [_rank(stage) for stage in entry.stages],
            ranked.index(entry.ran.status if entry.ran else ""),
            entry.name,
        ),
    )


def read_gallery_file(folder: Path) -> GalleryFile:
    """What a folder's ``gallery.json`` states; nothing if it has none.

    Raises:
        ArgsError: It is invalid, or holds a secret.
    """
    path, fix = folder / GALLERY_FILE, "fix the file, or remove it"
    if not path.is_file() or leads_out(path, folder):
        return GalleryFile(format=1)
    content = read_json_object(path, error=ArgsError, fix=fix)
    if secret := next((one for one in in_value(content) if one.kind == "secret"), None):
        raise ArgsError(f"{path}: {secret.where}: {secret.what}; remove it, and revoke it if the file was ever shared")
    try:
        found = GalleryFile.model_validate(content)
    except ValidationError as error:
        raise ArgsError(invalid(error, f"{path}: ", GalleryFile.model_fields)) from None
    for name, text in found.gpus.items():
        parse_gpus(text, f"{path}: gpus.{name}")
    return found


def _files(folder: Path) -> Iterator[Path]:
    """The YAML files, bundles' manifests and notes of origin below a folder; not in hidden folders or behind links."""
    for directory, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for path in (Path(directory, name) for name in sorted(files)):
            named = path.suffix in YAML_FILES or path.name in (MANIFEST, ORIGIN)
            if named and path.is_file() and not leads_out(path, folder):
                yield path


def _read_or_error(folder: Path) -> Bundle | str:
    try:
        return read_bundle(folder)
    except (SolarError, OSError) as error:
        return _without_paths(error)


class _Place(NamedTuple):
    """A folder of recipes, and what is known of it."""

    folder: Path
    pack: str
    declared: GalleryFile
    configs: Path
    """A folder for the configs of declared bases, as files."""
    bundles: Mapping[Path, Bundle | str]
    """Those in the folder; the error of one that cannot be used."""
    origins: Mapping[Path, str]
    """Where fetched folders come from."""

    def gpus_of(self, name: str) -> tuple[int | None, float | None]:
        """Number and GB of the GPUs that a recipe is for, by its path in the folder; None: not stated."""
        text = self.declared.gpus.get(name)
        return parse_gpus(text)[1:] if text else (None, None)

    def config_of(self, name: str, revision: str | None) -> str | None:
        """A path that gives a base's config: its folder or file, or a file of the Hub cache; None: not at hand."""
        if name in self.declared.bases:
            path = self.configs / hashlib.sha256(name.encode("utf-8", "replace")).hexdigest() / CONFIG
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.declared.bases[name]), encoding="utf-8")
            return str(path)
        if Path(os.path.expanduser(name), CONFIG).is_file():
            return name
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with suppress(HFValidationError, ValueError):
            cached = try_to_load_from_cache(name, CONFIG, revision=revision)
            return cached if isinstance(cached, str) else None
        return None


def _entry(path: Path, place: _Place) -> Entry | None:
    """The row of a file; None for a file that is no recipe."""
    known = Entry(place.pack, path.relative_to(place.folder).as_posix())
    try:
        if (size := path.stat().st_size) > MAX_RECIPE_BYTES:
            raise ArgsError(f"{format_bytes(size)}, expected at most {format_bytes(MAX_RECIPE_BYTES)} in a recipe")
        content = read_yaml(path)
        if (stages := stages_of(content)) is None:
            return None
        fetched_from = next((place.origins[one] for one in path.parents if one in place.origins), "")
        declared = place.declared.recipes.get(known.name)
        known = replace(known, stages=stages, ran=declared, fetched_from=fetched_from)
        if any(one.kind == "secret" for one in in_file(path.read_text(encoding="utf-8"), content)):
            raise ArgsError("a secret is in this file, so it is not shown; see `solar recipes check`")
        known = replace(known, summary=recipe_summary(path), needs=recipe_needs(path))
        bundle = next((folder for folder in place.bundles if path.is_relative_to(folder)), None)
        known = _described(known, path, content, place)
        return known if bundle is None else _with_run(known, path.relative_to(bundle), place.bundles[bundle])
    except (SolarError, OSError, ValueError) as error:  # A ValueError: a path with a null character.
        return replace(known, problem=_without_paths(error))


def _with_run(known: Entry, path: Path, bundle: Bundle | str) -> Entry:
    """What a bundle says of the stage that ran one of its recipes."""
    if isinstance(bundle, str):
        return replace(known, problem=bundle)
    stage = next((one for one in bundle.manifest.stages if one.file == path.as_posix()), None)
    if stage is None:
        return known
    metrics: dict[str, float | str] = {one.name: f"{one.value:.4g}" for one in bundle.metrics.get(stage.name, [])}
    machine = " x ".join(str(part) for part in (stage.processes, stage.device) if part)
    known = replace(known, base=_public(stage.base or known.base), origin="")
    known = replace(known, ran=Ran(status="run", machine=machine, results=metrics))
    if known.layers is not None or stage.name not in bundle.plans:
        return known
    plan = LayerPlan.from_dict(bundle.plans[stage.name].plan)
    if "upscale" not in known.stages:
        return replace(known, layers=len(plan))
    return replace(known, layers_before=plan.base_layers, layers=len(plan), plan=plan)


def _rank(stage: str) -> float:
    return STAGES.index(stage) if stage in STAGES else STAGES.index("DPO") + 0.5


def _described(known: Entry, path: Path, content: Mapping[str, Any], place: _Place) -> Entry:
    if known.stages == ("pipeline",):
        return _pipeline(known, path, content, place)
    if "merge" in known.stages:
        return _merge(known, content, place)
    if known.stages in (("mixture",), ("maths",)):
        return known
    if known.stages == ("evaluation",):
        return replace(known, base=_public(str(content.get("lm_eval_model") or content.get("base_model") or "")))
    return _training(known, read_recipe(path), place, place.gpus_of(known.name))


def _training(
    known: Entry,
    recipe: Recipe,
    place: _Place,
    gpus: tuple[int | None, float | None],
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Entry:
    """A recipe that trains: its plan and memory, if the config of the base at the start of its chain is available."""
    assert recipe.path is not None
    start, _ = start_of(recipe)
    if start.path is None or leads_out(start.path, place.folder):
        raise ArgsError(f"base_model: {recipe.base.name!r} is written by a recipe outside of this folder")
    name, revision = start.base
    known = replace(known, base=_public(recipe.base.name), origin=_public(name) if start is not recipe else "")
    base = place.config_of(name, revision)
    if base is None:
        return replace(known, unknown=f"the config.json of {_public(name)} is not available here")
    if start.upscales and start.solar is not None:
        plan = plan_of(start.solar.init, find_config(base).decoder.num_layers, "solar.init.")
        elsewhere = next((donor.name for donor in plan.donors if not Path(donor.name).is_dir()), None)
        if elsewhere is not None:  # It would be fetched.
            known = replace(known, plan=plan, layers_before=plan.base_layers, layers=len(plan))
            return replace(known, unknown=f"the config.json of {_public(elsewhere)} is not available here")
    found = model_of(recipe, base)
    known = replace(known, layers=found.model.num_layers)
    if recipe.upscales and found.plan is not None:
        known = replace(known, layers_before=found.plan.base_layers, plan=found.plan)
    try:
        return replace(known, memory=memory_of_recipe(recipe.path, base, *gpus, overrides))
    except SolarError as error:
        return replace(known, unknown=_without_paths(error))


def _pipeline(known: Entry, path: Path, content: Mapping[str, Any], place: _Place) -> Entry:
    """Base and plan of the first stage that trains, and the memory of the stage that needs most."""
    try:
        args = PipelineArgs.model_validate(content)
    except ValidationError as error:
        raise ArgsError(invalid(error, "", PipelineArgs.model_fields, {"stages": StageArgs.model_fields})) from None
    trained = list[Entry]()
    for stage in args.stages:
        if stage.recipe is None:
            continue
        file = path.parent / stage.recipe
        if leads_out(file, place.folder):
            raise ArgsError(f"stages: {stage.recipe!r} is outside of this folder; expected a recipe in it")
        recipe = read_recipe(file, stage.overrides)
        trained.append(_training(known, recipe, place, (args.gpus, args.gpu_memory), stage.overrides))
    if not trained:
        return known
    first, most = trained[0], max(trained, key=lambda one: one.memory.peak_bytes if one.memory else 0)
    unknown = next((one.unknown for one in trained if one.unknown), "")
    return replace(first, memory=None if unknown else most.memory, unknown=unknown)


def _merge(known: Entry, content: Mapping[str, Any], place: _Place) -> Entry:
    """A mergekit recipe; one that stacks layers of a single model has a plan."""
    slices = _stacked(content.get("slices"))
    models = content.get("models")
    sources = [source for one in slices for source in one] or (models if isinstance(models, list) else [])
    names = [one["model"] for one in sources if isinstance(one, Mapping) and isinstance(one.get("model"), str)]
    different = list(dict.fromkeys(names))
    shown = [_public(name) for name in different[:3]] + (["..."] if len(different) > 3 else [])
    known = replace(known, base=", ".join(shown) or _public(str(content.get("base_model") or "")))
    if len(different) != 1 or len(names) != len(slices):
        return known
    base = place.config_of(different[0].partition("@")[0], None)
    if base is None:
        return replace(known, unknown=f"the config.json of {_public(different[0])} is not available here")
    depth = find_config(base).decoder.num_layers
    ends = [source["layer_range"] for one in slices for source in one]
    ranges = [{"start": start, "end": end} for start, end in ends]
    plan = LayerPlan.from_dict({"base_layers": depth, "ranges": ranges})
    return replace(known, layers_before=depth, layers=len(plan), plan=plan)


def _stacked(slices: Any) -> list[list[Mapping[str, Any]]]:
    """The sources of each of mergekit's ``slices``; empty if these are not ranges of layers."""
    found = list[list[Mapping[str, Any]]]()
    for one in slices if isinstance(slices, list) else ():
        sources = one.get("sources") if isinstance(one, Mapping) else None
        if not (isinstance(sources, list) and sources and all(map(layer_range, sources))):
            return []
        found.append(sources)
    return found


def _public(name: str) -> str:
    """A model as the page names it: of a path outside the working directory only the last part."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", "~", "..")) else name


def _without_paths(error: Exception) -> str:
    """The first line of an error, without the folders of absolute paths and without quotations of YAML."""
    line = str(error).partition("\n")[0].partition("not valid YAML; ")
    return re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", line[0] + line[1]).removesuffix("; ")


# --- draw

STRIP_WIDTH, ROW_HEIGHT, GAP = 240.0, 9.0, 15.0
MAX_DRAWN = 160
"""Layers drawn one by one; a deeper model is drawn in blocks."""


class Box(NamedTuple):
    """A layer in the strip."""

    x: float
    y: float
    width: float
    color: str
    hollow: bool


@dataclass(frozen=True)
class Strip:
    """The picture of a plan in small: the base's layers above, those of the upscaled model below. In SVG units."""

    boxes: list[Box]
    bands: list[tuple[str, str]]
    """From the base to the copies: an SVG path, and its color."""
    seams: list[float]
    width: float = STRIP_WIDTH
    row: float = ROW_HEIGHT
    height: float = 2 * ROW_HEIGHT + GAP

    @property
    def seam_width(self) -> float:
        """Narrower where there are many seams."""
        return min(2.4, 0.3 * self.width / max(len(self.seams), 1))


def strip_of(plan: LayerPlan) -> Strip:
    """The strip of a plan."""
    depths = [plan.base_layers, *(donor.num_layers or _depth(plan, at) for at, donor in enumerate(plan.donors, 1))]
    longest = max(sum(depths), len(plan))
    cell, step = STRIP_WIDTH / longest, ceil(longest / MAX_DRAWN)
    starts = [sum(depths[:model]) * cell for model in range(len(depths))]

    def color(layer: int, model: int) -> str:
        return _between(DONOR_COLORS if model else DEPTH_COLORS, layer / max(depths[model] - 1, 1))

    boxes = [
        Box(starts[model] + layer * cell, 0, min(step, depth - layer) * cell, color(layer, model), hollow=False)
        for model, depth in enumerate(depths)
        for layer in range(0, depth, step)
    ]
    low, bands, position = ROW_HEIGHT + GAP, list[tuple[str, str]](), 0
    for part in plan.ranges():
        count = part.end - part.start
        left, right = starts[part.model] + part.start * cell, starts[part.model] + part.end * cell
        down, end = position * cell, (position + count) * cell
        outline = f"M{left:.1f} {ROW_HEIGHT}H{right:.1f}L{end:.1f} {low}H{down:.1f}Z"
        bands.append((outline, color((part.start + part.end - 1) // 2, part.model)))
        boxes += [
            Box(
                (position + at) * cell,
                low,
                min(step, count - at) * cell,
                color(part.start + at, part.model),
                hollow=part.initialization != "copy",
            )
            for at in range(0, count, step)
        ]
        position += count
    return Strip(boxes, bands, [seam.position * cell for seam in plan.seams()])


def _depth(plan: LayerPlan, model: int) -> int:
    return max((layer.source + 1 for layer in plan.layers if layer.model == model), default=1)


def _between(scale: tuple[str, ...], place: float) -> str:
    """The color at a place from 0 to 1 of a scale.

    Example:
        >>> _between(("#000000", "#ff0000"), 0.5)
        '#800000'
    """
    at = place * (len(scale) - 1)
    low = min(int(at), len(scale) - 2)
    pairs = [(int(scale[low][i : i + 2], 16), int(scale[low + 1][i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(one + (other - one) * (at - low)):02x}" for one, other in pairs)


# --- render


def write_gallery(entries: Iterable[Entry], output: Path, title: str) -> int:
    """Write the page and return the number of recipes on it.

    Raises:
        SolarError: The file cannot be written, or jinja2 is not installed.
    """
    require("solar recipes gallery")
    rows = list(entries)
    page = render(rows, title)
    with write_errors_explained(output, "gallery", "give a file in a folder that you may write to", SolarError):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, page.encode())
    return len(rows)


def render(entries: list[Entry], title: str) -> str:
    """The page. Everything that comes from files is escaped, and nothing of it becomes a link or a script."""
    from markupsafe import Markup

    folder = Path(__file__).parent
    script = (folder / "gallery.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("gallery.html.jinja", folder).render(
        title=shown(title),
        entries=entries,
        script=Markup(script),
        script_hash=digest,
        strip_of=strip_of,
        shown=shown,
        json=lambda texts: json.dumps([shown(text) for text in texts]),
        order_of=lambda entry: " ".join(f"{_rank(stage):04.1f}" for stage in entry.stages),
        format_bytes=format_bytes,
        statuses=STATUSES,
        free_share=FREE_SHARE,
        stages=sorted({stage for entry in entries for stage in entry.stages}, key=lambda one: (_rank(one), one)),
        packs=list(dict.fromkeys(entry.pack for entry in entries)),
    )


def shown(text: object) -> str:
    """A text of a recipe in one line, without control characters, at most `MAX_TEXT` characters long."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"
