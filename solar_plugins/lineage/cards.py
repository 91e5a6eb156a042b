"""A lineage as a model card: metadata that the Hub reads, and the plan and the stages in words. Only `save` writes.

The card has no path of a machine: a local model or dataset is the last part of its name, and only hub ids become links.
What an author wrote stays: the generated part is between two comments, and metadata of the author win.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from solar_plugins.lineage.public import public_text
from solar_plugins.lineage.record import LINEAGE_FILE, Lineage, Source, Stage, write
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.cards import CARD, code, details, plain, split_card
from solar_plugins.storage.untrusted import is_plain_relative_path
from solar_plugins.upscaling.model_card import UNTRAINED, plan_section

TOOLS = {
    "solar_plugins": "`solar_plugins`",
    "axolotl": "[Axolotl](https://github.com/axolotl-ai-cloud/axolotl)",
    "mergekit": "[mergekit](https://github.com/arcee-ai/mergekit)",
}
KINDS = {
    "upscale": "Depth up-scaling",
    "pretrain": "Continued pretraining",
    "sft": "Supervised fine-tuning (SFT)",
    "reward": "Reward model training",
    "merge_lora": "Merge of a LoRA adapter",
    "merge": "Merge with mergekit",
}
PREFERENCE = "Preference training"
"""For every other kind, which is a preference method such as ``dpo``."""
ADAPTERS = {"lora": "LoRA", "qlora": "QLoRA"}

BEGIN = "<!-- solar_plugins: written from solar_lineage.json; text outside this part stays"
OWN = "; metadata of the author: "
END = "<!-- solar_plugins: end -->"
HEAD = re.compile(rf"{re.escape(BEGIN)}(?:{OWN}(?P<own>[^>\n]{{0,2000}}?))? -->")

MADE_BY_TOOLS = (
    "This model card has been generated automatically according to the information the Trainer",
    "It has been trained using [TRL]",
    "language models created using [mergekit]",
    "# Model Card for Model ID",
    "### Framework versions\n\n- PEFT ",
    "Created with `solar_plugins` from `",
)
"""Each is in the cards of one tool: transformers, trl, mergekit, peft (two), `upscaling.model_card`."""
KEPT_SECTIONS = ("Evaluation results", "Training procedure", "Citations")
"""Of a trainer's card. The rest says "trained from scratch", "more information needed" and "None"."""
RESULTS = re.compile(r"^It achieves the following results on the evaluation set:\n((?:- .*\n)+)", re.M)


def card(lineage: Lineage, old_card: str = "", made: str = "") -> str:
    """The model card.

    Args:
        lineage: What the model was made from.
        old_card: The card that this one replaces. What its author wrote is kept, and what this function wrote, a
            trainer or mergekit is replaced.
        made: A trainer's new card, whose tables of results and settings are taken over.
    """
    old_front, body = split_card(old_card)
    found = _part(body)
    own, before, after = {}, "", ""
    tool_front, tool_body = split_card(made)
    if found:
        before, own_keys, inside, after = found
        own = {key: old_front[key] for key in own_keys.split(", ") if key in old_front}
        tool_front, tool_body = (tool_front, tool_body) if made else (old_front, inside)
    elif is_made(old_card):
        tool_front, tool_body = (tool_front, tool_body) if made else (old_front, body)
    else:
        own, before = old_front, body.strip()
    front = _united(_metadata(lineage), own, tool_front)
    parts = [
        *([before] if before else []),
        f"{BEGIN}{OWN + ', '.join(own) if own else ''} -->\n{_body(lineage, own, titled=not before)}"
        + "\n".join(_kept_sections(tool_body))
        + END,
        *([after] if after else []),
    ]
    import yaml  # Imported late, as in `storage.untrusted`.

    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n" + "\n\n".join(parts) + "\n"


def save(folder: Path, lineage: Lineage, *, old_card: str, made: str = "") -> None:
    """Write the lineage file and the card of a model or adapter.

    Args:
        folder: The model's.
        lineage: As for `card`.
        old_card: As for `card`.
        made: As for `card`.

    Raises:
        OSError: One cannot be written.
    """
    for name in (LINEAGE_FILE, CARD):
        if (folder / name).is_symlink():  # Its target may be the file of somebody else, or in the cache of the Hub.
            (folder / name).unlink()
    write(folder, lineage)
    write_file(folder / CARD, card(lineage, old_card, made).encode())


def _united(ours: dict[str, Any], own: Mapping[str, Any], tool: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a lineage, of the author and of a tool: of the last only the tags are true."""
    found = ours | {key: value for key, value in own.items() if key not in ("tags", "datasets")}
    tags = [*_texts(ours["tags"]), *_texts(own.get("tags")), *_texts(tool.get("tags"))]
    datasets = [*_texts(ours.get("datasets")), *_texts(own.get("datasets"))]
    found["tags"] = [tag for tag in dict.fromkeys(tags) if not tag.startswith("base_model:")]
    return found | ({"datasets": [*dict.fromkeys(datasets)]} if datasets else {})


def is_made(text: str) -> bool:
    """Whether a card is one that a tool made, so that nobody misses it."""
    return _part(text) is not None or any(mark in text for mark in MADE_BY_TOOLS)


def _part(body: str) -> tuple[str, str, str, str] | None:
    """What stands before the generated part, the author's keys of its head, the part, and what follows; None without.

    The end is looked for first: a pattern for the entire part takes quadratic time where heads have no end.
    """
    head = HEAD.search(body, 0, max(body.rfind(END), 0))
    if head is None:
        return None
    end = body.find(END, head.end())
    return body[: head.start()].strip(), head["own"] or "", body[head.end() : end], body[end + len(END) :].strip()


def license_warning(lineage: Lineage) -> str | None:
    """What is wrong with the licenses of the models that a model was made from; None if they agree."""
    if len(lineage.licenses) > 1:
        stated = ", ".join(f"{one.name or one.id} ({one.source})" for one in lineage.licenses)
        return (
            f"the models that this one was made from have different licenses: {stated}. Check which of them apply, and "
            "set license in the metadata of README.md"
        )
    if lineage.unlicensed or not lineage.licenses:
        names = ", ".join(lineage.unlicensed) or "the base"
        return (
            f"no license is known of {names}: no card that was found states one. Find out under which license it may "
            "be used, and set license in the metadata of README.md before you publish this model"
        )
    return None


def _metadata(lineage: Lineage) -> dict[str, Any]:
    kinds = {stage.kind for stage in lineage.stages}
    parents = [source.name for source in lineage.hub_parents]
    front: dict[str, Any] = _license_fields(lineage) if len(lineage.licenses) == 1 else {}
    if lineage.language:
        front["language"] = [*lineage.language]
    if parents:
        front |= {"base_model": parents, "base_model_relation": _relation(lineage)}
    datasets = dict.fromkeys(one.name for stage in lineage.stages for one in stage.datasets if one.on_hub)
    if datasets:
        front["datasets"] = [*datasets]
    front["library_name"] = "peft" if lineage.is_adapter else "transformers"
    if lineage.is_adapter:
        front["pipeline_tag"] = "text-generation"
    tags = ["axolotl"] if kinds - {"upscale", "merge"} else []
    tags += ["depth-up-scaling"] if lineage.plan or "upscale" in kinds else []
    tags += ["mergekit", "merge"] if "merge" in kinds else []
    return front | {"tags": [*tags, *(["lora"] if lineage.is_adapter else []), "solar_plugins"]}


def _license_fields(lineage: Lineage) -> dict[str, str]:
    """The license for the metadata. A link to a file of a base on the hub becomes an address: only the base has it."""
    (one,) = lineage.licenses
    base = next((base for base in lineage.bases if base.on_hub and base.name == one.source), None)
    if base is None or not one.link or not is_plain_relative_path(one.link):
        return one.fields
    address = f"https://huggingface.co/{base.name}/blob/{base.revision or 'main'}/{one.link}"
    return one.fields | {"license_link": address}


def _relation(lineage: Lineage) -> str:
    last = lineage.stages[-1].kind if lineage.stages else ""
    if lineage.is_adapter:
        return "adapter"
    plan = lineage.layer_plan
    return "merge" if last == "merge" or (last == "upscale" and plan and plan.donors) else "finetune"


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, str) and one]


def _body(lineage: Lineage, own: Mapping[str, Any], *, titled: bool) -> str:
    name = lineage.result.short if lineage.result else "Model"
    ran = [tool for tool in ("axolotl", "mergekit") if any(tool in stage.versions for stage in lineage.stages)]
    tools = ", ".join(TOOLS[tool] for tool in ("solar_plugins", *ran))
    lines = [f"# {plain(name)}" if titled else "## Lineage", ""]
    lines += [f"{code(name)} was made from {_listed(lineage.bases)} with {tools}.", ""]
    lines += [*_stages(lineage), ""]
    plan = lineage.layer_plan
    if plan is not None:
        said = (
            f"{plan.base_layers} layers upscaled to {len(plan)} (depth up-scaling, Kim et al. 2023, arXiv:2312.15166)."
        )
        lines += ["## Layer plan", "", said, "", plan_section(plan)]
        lines += [_details("The plan as JSON", "json", json.dumps(lineage.plan))]
    recipes = [
        _details(f"Recipe of stage {number}: {stage.result.short}", "yaml", stage.recipe)
        for number, stage in enumerate(lineage.stages, 1)
        if stage.recipe
    ]
    if recipes:
        lines += ["## Recipes", "", "As they were run, without paths and tokens of the machine.", "", *recipes]
    lines += _license(lineage, own)
    if lineage.stages and lineage.stages[-1].versions:
        versions = ", ".join(f"{key} {value}" for key, value in lineage.stages[-1].versions.items())
        lines += ["## Versions", "", f"Of the last stage: {plain(versions)}.", ""]
    return "\n".join(lines) + "\n"


def _stages(lineage: Lineage) -> Iterator[str]:
    yield "## Stages"
    yield ""
    if lineage.earlier_unknown:
        yield "The model was trained or merged before the last of these stages in ways that are not recorded.\n"
    for number, stage in enumerate(lineage.stages, 1):
        named = ADAPTERS.get(stage.adapter or "", stage.adapter)
        adapter = f" with a {named} adapter" if named and stage.kind != "merge_lora" else ""
        line = f"{number}. **{_kind(stage)}**{adapter} of {_listed(stage.sources)}"
        line += f", on {_listed(stage.datasets, 'datasets/')}" if stage.datasets else ""
        yield f"{line}: gives {_model(stage.result)}"
    if lineage.is_adapter:
        yield ""
        yield (
            f"**This is an adapter.** It fits {_listed(lineage.stages[-1].sources)} of the stages above, and not the "
            "models that it was upscaled from."
        )
    elif [stage.kind for stage in lineage.stages] == ["upscale"] and not lineage.earlier_unknown:
        yield ""
        yield UNTRAINED.strip()


def _kind(stage: Stage) -> str:
    return KINDS.get(stage.kind) or f"{PREFERENCE} ({stage.kind.upper()})"


def _license(lineage: Lineage, own: Mapping[str, Any]) -> Iterator[str]:
    if "license" in own:
        return
    yield "## License"
    yield ""
    if warning := license_warning(lineage):
        yield f"> **Warning:** {plain(warning)}."
        yield ""
    for one in lineage.licenses:
        name = code(one.name or one.id)
        link = f" ([text]({one.link}))" if one.link and re.fullmatch(r"https://[\w./%#?=&+~:-]+", one.link) else ""
        yield f"{name}{link}, inherited from {code(one.source)}. The licenses of the data apply too."
        yield ""


def _model(source: Source, kind: str = "") -> str:
    if not source.on_hub:
        return code(source.short)
    at = f" at {code(source.revision[:12])}" if source.revision else ""
    return f"[{source.name}](https://huggingface.co/{kind}{source.name}){at}"


def _listed(sources: tuple[Source, ...], kind: str = "") -> str:
    texts = [*dict.fromkeys(_model(source, kind) for source in sources)] or ["a model that is not recorded"]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts)


def _details(title: str, language: str, text: str) -> str:
    return details(title, language, text.replace("<!--", "<!- -"))  # Else it could end the generated part.


def _kept_sections(body: str) -> Iterator[str]:
    results = RESULTS.search(body)
    if results:
        yield f"## Evaluation results\n\n{results[1]}"
    for section in re.split(r"^(?=## )", body, flags=re.M)[1:]:
        title = section.partition("\n")[0].removeprefix("## ").strip()
        if title in KEPT_SECTIONS:
            text = public_text(section.replace("<!--", "<!- -"))
            yield re.sub(r"\n(?:[ \t]*\n){2,}", "\n\n", text).strip() + "\n"
