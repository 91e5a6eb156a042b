"""`solar recipes check`: everything that can be known about recipes without running them.

Nothing that a recipe names is imported or executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from solar_plugins.axolotl_adapter.schema import Answer, Problem
from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.errors import ArgsError, CheckpointError, PluginError, SolarError
from solar_plugins.logs import logger
from solar_plugins.maths.recipe import MathsArgs, invalid_maths
from solar_plugins.pipeline import holds_more
from solar_plugins.recipe import Recipe, parse_recipe
from solar_plugins.sharing.bundle import CARD, MANIFEST, MAX_TEXT_BYTES, PICTURES, VERSIONS, Bundle
from solar_plugins.sharing.findings import Finding, Level, as_json, as_text, counted, has_errors
from solar_plugins.sharing.foreign_code import foreign_code, is_unknown_type
from solar_plugins.sharing.gpus import Gpus, parse_gpus
from solar_plugins.sharing.hub_facts import NON_COMMERCIAL, OPEN, Hub, HubFacts, license_in
from solar_plugins.sharing.hub_session import COMMIT
from solar_plugins.sharing.references import Reference, references
from solar_plugins.sharing.schemas import MergeAnswer, ask_schemas
from solar_plugins.sharing.secrets import Private, in_file
from solar_plugins.sharing.sources import Source, datasets_of, deepspeed_of, normal, read_sources, written_by
from solar_plugins.solar_block import InitArgs, invalid
from solar_plugins.storage.untrusted import duplicate_keys, parse_json_object, parse_yaml, read_text
from solar_plugins.upscaling.base_model import CONFIG, find_config
from solar_plugins.upscaling.provenance import plan_of_model, requested_plan
from solar_plugins.upscaling.strategies import init_strategy, strategy_arguments
from solar_plugins.upscaling.trained_layers import refuse_frozen_identity_layers, training_keys
from solar_plugins.upscaling.upscaled_config import upscale_config
from solar_plugins.versions import package_versions

__all__ = ["KINDS", "Finding", "as_json", "as_text", "check", "counted", "has_errors"]

KINDS: Mapping[str, str] = {
    "file": "the file is YAML, of a usable size, and in a bundle unchanged",
    "pipeline": "a pipeline's stages exist and come in an order that works",
    "keys": "Axolotl, its plugins, mergekit or this package know every key and accept its value",
    "dropped": "no key is silently ignored",
    "plan": "the layer plan fits the base's real config.json",
    "exists": "the base and the datasets exist",
    "pins": "they are pinned to a commit",
    "memory": "the training fits the GPUs of `--gpu`",
    "seed": "the recipe sets a seed",
    "code": "what third-party code the run would execute",
    "paths": "no paths and names of one machine",
    "secrets": "no tokens, keys or passwords",
    "license": "licenses of the base and the data",
    "versions": "the packages that a bundle was made with",
}
"""The checks, by `Finding.kind`."""

LOG = logger("check")

NOT_REPLACED = "Axolotl does not replace variables; write the value"
BASE_KEYS = ("base_model", "lm_eval_model")


@dataclass(frozen=True, slots=True)
class _Context:
    """What all checks of one call share."""

    hub: Hub
    gpus: tuple[Gpus, ...]
    written: Mapping[str, str]


def check(path: Path, *, gpus: Sequence[str] | None = None, offline: bool | None = None) -> list[Finding]:
    """Check a recipe, merge, mixture or pipeline, a bundle, or every such file in a folder.

    Args:
        path: The file or folder.
        gpus: GPUs that the training must fit, such as ``H100``, ``8xA100-80GB`` or ``24`` (GB).
        offline: Ask the hub nothing. Default: as ``HF_HUB_OFFLINE``.

    Returns:
        The findings, by file. Errors mean that the check failed.

    Raises:
        ArgsError: The path does not exist or holds nothing that can be checked, or a GPU is not known.
    """
    if offline is None:
        from huggingface_hub import constants

        offline = constants.HF_HUB_OFFLINE
    parsed_gpus = tuple(map(parse_gpus, gpus or ()))
    findings = list[Finding]()
    sources = read_sources(path, findings)
    written = {} if path.is_dir() and any(one.bundle for one in sources) else written_by(sources, path)
    context = _Context(Hub(offline=offline), parsed_gpus, written)
    for source in sources:
        for one_check in CHECKS:
            findings += one_check(source, context)
    said = {(one.file, one.key) for one in findings if one.kind == "keys"}
    findings = [one for one in findings if one.kind != "plan" or (one.file, one.key) not in said]
    findings += (one for one in _schema_findings(sources) if one.level != "error" or (one.file, one.key) not in said)
    bundle = next((source.bundle for source in sources if source.bundle), None)
    if bundle is not None:
        findings += _bundle_findings(bundle)
    order = {source.name: number for number, source in enumerate(sources)}
    findings.sort(key=lambda one: (order.get(one.file, -1), one.file))
    return list(dict.fromkeys(findings))


# --- keys


def _schema_findings(sources: Sequence[Source]) -> Iterator[Finding]:
    """Of Axolotl's and mergekit's schema, asked once for all files."""
    recipes = [source for source in sources if source.kind in ("recipe", "evaluation")]
    merges = [source for source in sources if source.kind == "merge"]
    if recipes:
        LOG.info("asking the installed Axolotl about %d recipes; importing it takes about 10 s", len(recipes))
    try:
        answers = ask_schemas([one.opened for one in recipes], [one.opened for one in merges])
    except SolarError as error:
        for source in (*recipes, *merges):
            yield Finding("unknown", source.name, "", str(error), "repair the installation", "keys")
        return
    if answers.recipes is None:
        for source in recipes:
            text = "Axolotl's keys: unknown: not installed; only the solar: block was checked"
            yield Finding("unknown", source.name, "", text, "pip install 'solar_plugins[axolotl]'", "keys")
    if answers.merges is None:
        for source in merges:
            text = "mergekit's keys: unknown: not installed"
            yield Finding("unknown", source.name, "", text, "pip install 'solar_plugins[mergekit]'", "keys")
    for source, answer in zip(recipes, answers.recipes or [], strict=False):
        yield from _answer_findings(source, answer)
    for source, merge in zip(merges, answers.merges or [], strict=False):
        yield from _merge_findings(source, merge)


def _answer_findings(source: Source, answer: Answer) -> Iterator[Finding]:
    for key, text, _ in answer["errors"]:
        yield Finding("error", source.name, key, _without_key(key, text), _fix_in(text, "fix the value"), "keys")
    yield from _dropped_findings(source, answer["dropped"])
    for key, text, _ in answer["warnings"]:
        yield Finding("warning", source.name, key, text, "follow Axolotl's advice", "keys")
    for name, why in answer["not_loaded"].items():
        keys = ", ".join(answer["unknown_with_plugins"])
        text = f"{name}: {why}, so its keys are not known here" + (f"; perhaps its: {keys}" if keys else "")
        yield Finding(
            "unknown", source.name, "plugins", text, "check these keys in that plugin's documentation", "keys"
        )


def _dropped_findings(source: Source, dropped: Sequence[Problem]) -> Iterator[Finding]:
    for key, text, meant in dropped:
        level: Level = "error" if meant else "warning"
        fix = f"did you mean {meant}?" if meant else "remove it, or look the key up in the documentation"
        yield Finding(level, source.name, key, text, fix, "dropped")


def _merge_findings(source: Source, answer: MergeAnswer) -> Iterator[Finding]:
    for key, text, meant in answer.errors:
        fix = f"did you mean {meant}?" if meant else "fix the value"
        yield Finding("error", source.name, key, text, fix, "keys")
    yield from _dropped_findings(source, answer.dropped)


def _without_key(key: str, text: str) -> str:
    return text.removeprefix(f"{key}: ") if key else text


def _fix_in(text: str, otherwise: str) -> str:
    """Messages of this package end with their fix."""
    return "" if ";" in text or ". " in text else otherwise


def _block_findings(source: Source, context: _Context) -> Iterator[Finding]:
    """The keys of the solar: block with its strategy's arguments, and those of a mixture or a `solar maths` recipe."""
    error = ""
    try:
        if source.kind == "recipe":
            recipe = parse_recipe(source.opened, source.path, source.text)
            if recipe.solar is not None and recipe.upscales:
                _check_arguments(recipe.solar.init)
        elif source.kind == "mixture":
            MixtureArgs.model_validate(source.opened)
        elif source.kind == "maths":
            MathsArgs.model_validate(source.opened)
    except SolarError as problem:
        error = str(problem)
    except ValidationError as problem:
        maths = source.kind == "maths"
        error = invalid_maths(problem, "") if maths else invalid(problem, "", MixtureArgs.model_fields)
    for line in error.splitlines():
        key = line.split(":", 1)[0]
        text = _without_key(key, line)
        yield Finding("error", source.name, key, text, _fix_in(text, "fix the value"), "keys")


def _check_arguments(init: InitArgs) -> None:
    """As far as that is possible without the base.

    Raises:
        SolarError: The strategy is not registered, or does not take these arguments.
    """
    try:
        strategy_arguments(init)
    except PluginError as error:
        raise PluginError(f"solar.init.strategy: {error}") from None
    except ValidationError as error:
        raise ArgsError(invalid(error, "solar.init.", init_strategy(init.strategy).args.model_fields)) from None


def _type_findings(source: Source, context: _Context) -> Iterator[Finding]:
    for place in datasets_of(source.content) if source.kind == "recipe" else ():
        kind = place.entry.get("type")
        if isinstance(kind, str) and not place.key.startswith("pretraining_dataset") and is_unknown_type(kind):
            text = f"{kind!r} is not a prompt strategy of the installed Axolotl"
            yield Finding(
                "error", source.name, f"{place.key}.type", text, "use one it has, such as chat_template", "keys"
            )


# --- base, data, licenses


def _reference_findings(source: Source, context: _Context) -> Iterator[Finding]:
    missing = list[Reference]()
    for one in references(source):
        if "${" in one.name or one.name.startswith("$"):
            if source.bundle is None:
                yield Finding("error", source.name, one.key, f"{one.name!r}: {NOT_REPLACED}", "", "exists")
            continue
        yield from _one_reference(source, one, context, missing)
    if missing:
        names = ", ".join(one.name for one in missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        do = "do" if missing[1:] else "does"
        them = "them" if missing[1:] else "it"
        text = f"{names} {do} not exist on this machine, and nothing that is checked writes {them}"
        fix = f"create {them} before the run, or check again where the run takes place"
        key = missing[0].key + (f", and {len(missing) - 1} more" if missing[1:] else "")
        yield Finding("warning", source.name, key, text, fix, "exists")


def _one_reference(source: Source, one: Reference, context: _Context, missing: list[Reference]) -> Iterator[Finding]:
    """What is wrong with one reference. Local paths whose folder is missing too are added to ``missing``."""
    place = normal(one.name)
    if one.is_remote:
        text = f"{one.name}: whether it exists is not checked"
        yield Finding("unknown", source.name, one.key, text, "look whether you can read it", "exists")
    elif place in map(normal, source.later) and place not in map(normal, source.earlier):
        text = f"{one.name} is written by a later stage"
        yield Finding("error", source.name, one.key, text, "move that stage before this one", "pipeline")
    elif _exists(one.name):
        yield from _local_findings(source, one)
    elif _writer(place, context.written) is None:
        if (one.looks_local or "/" in one.name) and _exists(os.path.dirname(one.name.rstrip("/")) or "."):
            text = f"{one.name} does not exist, but its folder does"
            yield Finding("error", source.name, one.key, text, "fix the spelling, or create it", "exists")
        elif one.looks_local:
            missing.append(one)
        else:
            yield from _hub_findings(source, one, context.hub)


def _writer(place: str, written: Mapping[str, str]) -> str | None:
    """Who writes a path: it, or a folder around it."""
    return next((written[one] for one in (place, *map(str, Path(place).parents)) if one in written), None)


def _exists(name: str) -> bool:
    try:
        return Path(os.path.expanduser(name)).exists()
    except (OSError, ValueError):
        return False


def _local_findings(source: Source, one: Reference) -> Iterator[Finding]:
    folder = Path(os.path.expanduser(one.name))
    if one.kind == "model" and folder.is_dir():
        if one.key in BASE_KEYS and not (folder / CONFIG).is_file():
            text = f"{one.name} has no {CONFIG}, so it is not a model"
            yield Finding("error", source.name, one.key, text, "give the folder of a model", "exists")
        yield from _license_findings(source, one, license_in(folder), must_have_one=False)
    elif one.kind == "model" and folder.is_file():
        text = f"{one.name} is a file, expected the folder of a model"
        yield Finding("error", source.name, one.key, text, "give the folder", "exists")


def _hub_findings(source: Source, one: Reference, hub: Hub) -> Iterator[Finding]:
    facts = hub.facts(one.name, one.revision, one.kind)
    if facts.exists is False:
        at = f" at {one.revision}" if one.revision else ""
        text = f"{one.name}{at}: {facts.reason}"
        yield Finding("error", source.name, one.key, text, "fix the id or the revision, or log in", "exists")
        return
    yield from _pin_findings(source, one, facts)
    if facts.exists is None:
        text = f"{one.name}: {facts.reason}; whether it exists, and its license, are unknown"
        yield Finding("unknown", source.name, one.key, text, "check again online", "exists")
        return
    if facts.gated:
        text = f"{one.name} is gated: only accounts that accepted its terms can download it"
        yield Finding("note", source.name, one.key, text, "accept them on its page, then hf auth login", "exists")
    yield from _license_findings(source, one, facts.license, must_have_one=True)


def _pin_findings(source: Source, one: Reference, facts: HubFacts) -> Iterator[Finding]:
    if one.pin is None:
        text = f"{one.name} cannot be pinned: no key gives its revision, so it may change between runs"
        fix = "download it at a known revision and give the folder"
        revision = source.content.get("revision_of_model")
        if source.kind == "recipe" and one.kind == "model" and revision:
            text = f"Axolotl also looks for revision {revision!s:.50} of the base in {one.name}, another repository"
        yield Finding("warning", source.name, one.key, text, fix, "pins")
    elif one.revision is None:
        now = f"{one.pin}: {facts.commit}" if facts.commit and COMMIT.fullmatch(facts.commit) else f"{one.pin}"
        text = f"{one.name} is not pinned to a commit, so it may change between runs"
        yield Finding("warning", source.name, one.key, text, f"set {now}", "pins")
    elif not COMMIT.fullmatch(one.revision):
        text = f"{one.name} at {one.revision!r}: a branch or tag, which can move"
        yield Finding("warning", source.name, one.pin, text, "give the commit (40 hexadecimal digits)", "pins")


def _license_findings(
    source: Source, one: Reference, license_: str | None, *, must_have_one: bool
) -> Iterator[Finding]:
    level: Level = "warning"
    if license_ is None:
        level, text, fix = (
            "unknown",
            "its card is not in the Hub cache, so its license is unknown",
            "check again online",
        )
    elif license_ in ("", "unknown"):
        text, fix = "its card names no license, so you may have no right to use it", "ask its author, or use another"
    elif NON_COMMERCIAL.search(license_):
        text = f"license {license_}, not for commercial use; a model made from it may inherit that"
        fix = "read the license before you use the result"
    elif not OPEN.match(license_):
        level, text = "note", f"license {license_}, which has conditions of its own"
        fix = "read the license before you share the result"
    else:
        return
    if license_ or must_have_one:
        yield Finding(level, source.name, one.key, f"{one.name}: {text}", fix, "license")


# --- plan, memory, files


def _plan_findings(source: Source, context: _Context) -> Iterator[Finding]:
    """The plan against the base's config, where that is here or may be fetched."""
    recipe = _parsed(source)
    if recipe is None or recipe.solar is None or (not recipe.upscales and recipe.solar.train is None):
        return
    name, revision = recipe.base
    if "${" in name:
        text = "the plan is not compared with the base, because the base is a variable"
        yield Finding("unknown", source.name, "base_model", text, "check again with a base", "plan")
        return
    if not _exists(name):
        if _writer(normal(name), context.written) is not None:
            text = f"the plan is not compared with {name}, which an earlier stage writes"
            yield Finding("unknown", source.name, "solar", text, "check again after that stage", "plan")
            return
        facts = context.hub.facts(name, revision, "model")
        if not facts.exists or (context.hub.offline and not _config_is_cached(name, revision)):
            if facts.exists is None and not ("/" in name and _exists(os.path.dirname(name))):
                text = f"the plan is not compared with the config.json of {name}, which is not here"
                yield Finding("unknown", source.name, "solar", text, "check again online", "plan")
            return
    try:
        _compare_plan(recipe)
    except (SolarError, OSError) as error:
        text = str(error)
        key = text.split(":", 1)[0] if re.match(r"[\w.\[\]]+:", text) else "solar"
        yield Finding("error", source.name, key, _without_key(key, text), _fix_in(text, "fix the plan"), "plan")


def _config_is_cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, CONFIG, revision=revision), str)


def _compare_plan(recipe: Recipe) -> None:
    base = find_config(*recipe.base, trust_remote_code=recipe.trusts_code, trusted_keys=recipe.trusted_keys)
    assert recipe.solar is not None
    train = recipe.solar.train
    if not recipe.upscales:
        if train is not None:
            training_keys(recipe, train, base.decoder, plan_of_model(base.decoder, recipe.base.name))
        return
    plan, already_grown = requested_plan(base.decoder, base.name, recipe.solar.init)
    if not already_grown:
        base, plan = base.with_donors(plan, recipe.solar.init)
        upscale_config(base.decoder, plan, [donor.decoder for donor in base.donors])
    if train is not None:
        training_keys(recipe, train, base.decoder, plan)
        if not already_grown:
            refuse_frozen_identity_layers(train, base.decoder, plan)


def _parsed(source: Source) -> Recipe | None:
    if source.kind != "recipe":
        return None
    try:
        recipe = parse_recipe(source.content, source.path, source.text)
    except SolarError:  # `_block_findings` has it.
        return None
    return recipe if recipe.base_model else None


def _memory_findings(source: Source, context: _Context) -> Iterator[Finding]:
    if source.kind != "recipe" or not context.gpus:
        return
    from solar_plugins.memory.memory_report import memory_of_recipe

    for gpus in context.gpus:
        number = f"{gpus.number} x {gpus.gigabytes:g} GB"
        try:
            if "${" in str(source.content.get("base_model")):
                raise SolarError("the base is a variable")
            found = memory_of_recipe(source.path, None, gpus.number, gpus.gigabytes, source.overrides)
        except CheckpointError as error:
            base = re.search(r"^The stages of .* start from base_model: (\S+), and", str(error), re.MULTILINE)
            why = f"it needs the config.json of {base[1]}, which is not here" if base else str(error)
            text = f"{gpus.text}: the memory is not estimated: {why}"
            fix = f"check again online, or: solar plan {source.path} --memory --base CONFIG_JSON"
            yield Finding("unknown", source.name, "--gpu", text, fix, "memory")
            return
        except (SolarError, OSError) as error:
            yield Finding("unknown", source.name, "--gpu", f"the memory is not estimated: {error}", "", "memory")
            return
        text = f"{gpus.text} ({number}): {found.peak_bytes / 1e9:.3g} GB of each, estimated; {found.verdict}"
        change = "; ".join(one.keys for one in found.changes)
        level: Level = {"does not fit": "error", "tight": "warning"}.get(found.verdict, "note")  # type: ignore[assignment]
        fix = f"try {change}" if change else "" if level == "note" else "use larger or more GPUs"
        yield Finding(level, source.name, "--gpu", text, fix, "memory")


def _file_findings(source: Source, context: _Context) -> Iterator[Finding]:
    """The DeepSpeed file that a recipe names."""
    name, path = deepspeed_of(source) or ("", None)
    if path is None:
        if name and "${" not in name:
            fetched = name.startswith("deepspeed_configs/")
            fix = "axolotl fetch deepspeed_configs" if fetched else "give the file's path"
            text = f"{name} does not exist, neither in the working directory nor above the recipe"
            yield Finding("warning" if fetched else "error", source.name, "deepspeed", text, fix, "exists")
        return
    fix = "give a JSON file of DeepSpeed settings"
    try:
        text = read_text(path, fix=fix)
        content = parse_json_object(path, text.encode(), error=ArgsError, fix=fix)
    except SolarError as error:
        yield Finding("error", source.name, "deepspeed", str(error), "", "keys")
        return
    for one in in_file(text, content) if source.bundle is None else ():  # `_bundle_findings` has those of a bundle.
        yield _private(source.name, one._replace(where=f"deepspeed: {name}: {one.where}"), shared=False)


# --- seed, code, privacy


def _seed_findings(source: Source, context: _Context) -> Iterator[Finding]:
    if source.kind == "recipe" and source.content.get("seed") is None:
        text = "not set, and Axolotl has no default: each run shuffles the rows in another order"
        yield Finding("warning", source.name, "seed", text, "set seed: 42", "seed")


def _code_findings(source: Source, context: _Context) -> Iterator[Finding]:
    for code in foreign_code(source):
        level: Level = "warning" if code.certain else "note"
        yield Finding(level, source.name, code.key, code.what, code.fix, "code")


def _private_findings(source: Source, context: _Context) -> Iterator[Finding]:
    for one in in_file(source.text, source.content):
        yield _private(source.name, one, shared=source.bundle is not None)


def _text_findings(source: Source, context: _Context) -> Iterator[Finding]:
    """Keys that a reader would miss, and outputs that would be moved aside with everything in them."""
    for key in duplicate_keys(source.text):
        text = f"{key}: set twice; the last value counts"
        yield Finding("error", source.name, key.partition(" ")[0], text, "remove one of them", "keys")
    for key in ("output_dir", "output"):
        output = source.content.get(key)
        if isinstance(output, str) and (held := holds_more(output)):
            text, fix = f"{output} holds {held}", "give a folder of this run alone, such as outputs/NAME"
            yield Finding("error", source.name, key, text, fix, "paths")


def _private(file: str, one: Private, *, shared: bool) -> Finding:
    if one.kind == "secret":
        fix = "remove it, and revoke it if the file was ever shared; log in with hf auth login, or export a variable"
        return Finding("error", file, one.where, f"the file contains {one.what}", fix, "secrets")
    level: Level = "error" if shared else "warning"
    if one.kind == "path":
        text = f"{one.what} is a path of one machine"
        return Finding(level, file, one.where, text, "use a relative path or a hub id", "paths")
    return Finding(level, file, one.where, f"contains {one.what} of this machine", "remove it", "paths")


def _bundle_findings(bundle: Bundle) -> Iterator[Finding]:
    """The other files of a bundle, and the packages that it was made with."""
    names = [name for name in bundle.manifest.files if name not in bundle.contents and not name.startswith(PICTURES)]
    for name in (MANIFEST, CARD, *names):
        path = bundle.folder / name
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_TEXT_BYTES:
            text, content = path.read_text(encoding="utf-8", errors="replace"), None
            if name.endswith(".json"):
                with suppress(SolarError):
                    content = parse_yaml(text, name)
            for one in in_file(text, content):
                yield _private(name, one, shared=True)
    here = package_versions()
    made: dict[str, set[str]] = {}
    for versions in bundle.versions.values():
        for package, number in versions.items():
            made.setdefault(package, set()).add(number)
    for package, numbers in sorted(made.items()):
        text, fix = f"made with {package} {', '.join(sorted(numbers))}", "install it before you run this"
        if package not in here:
            yield Finding("warning", VERSIONS, package, f"{text}, which is not installed", fix, "versions")
        elif numbers != {here[package]}:
            text += f"; {here[package]} is installed"
            yield Finding("warning", VERSIONS, package, text, "expect small differences", "versions")


type Check = Callable[[Source, _Context], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    _private_findings,
    _text_findings,
    _block_findings,
    _type_findings,
    _reference_findings,
    _plan_findings,
    _memory_findings,
    _file_findings,
    _seed_findings,
    _code_findings,
)
