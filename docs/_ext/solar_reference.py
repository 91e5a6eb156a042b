"""Reference pages generated from the code: keys from pydantic models, registered objects from the plugin manager.

Also the sentence shown for a mark such as ``<!-- needs: gpu -->`` before an example.
"""

from __future__ import annotations

import datetime
import inspect
import re
import types
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

from solar_plugins.cli import StrategyCommand, solar
from solar_plugins.data.formatters import PreferenceFormatter, SFTFormatter, UnpairedFormatter
from solar_plugins.extras import EXTRA_OF, PACKAGES
from solar_plugins.plugins import hookspecs
from solar_plugins.plugins.dpo_configs import DPOConfig
from solar_plugins.plugins.manager import BUILT_IN_PLUGINS, owned
from solar_plugins.plugins.recipe_packs import recipe_directory, recipe_files, recipe_summary
from solar_plugins.sharing.gallery import entries_of, write_gallery
from solar_plugins.upscaling.initializers.base import LayerInitializer
from solar_plugins.upscaling.strategies.base import InitStrategy

NEEDS = {
    "gpu": "Needs a GPU. Not run by this project, which had none.",
    "hub": "Needs the Hugging Face Hub. Not run by this project.",
    "network": "Needs the network.",
}


# --- commands


def documented(command: click.Command) -> click.Command:
    """The command with the options that `StrategyCommand` adds, which sphinx-click does not see."""
    if isinstance(command, click.Group):
        for one in command.commands.values():
            documented(one)
    elif isinstance(command, StrategyCommand):
        own = click.Command.get_params(command, click.Context(command))
        command.params += [option for option in command.get_params(click.Context(command)) if option not in own]
    return command


commands = documented(solar)


# --- keys of YAML files


class ModelKeys(SphinxDirective):
    """A table of the keys of a pydantic model, including those of nested models.

    The argument is ``module:class``; ``prefix`` is prepended to each key.
    """

    required_arguments = 1
    option_spec: typing.ClassVar = {"prefix": str}

    def run(self) -> list[nodes.Node]:
        """The table."""
        module, _, name = self.arguments[0].partition(":")
        model = getattr(import_module(module), name)
        rows = list(key_rows(model, self.options.get("prefix", "")))
        return self.parse_text_to_nodes(table(("key", "value", "default", "meaning"), rows))


def key_rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    """One row per key of a model; nested keys follow their parent."""
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield f"`{key}`", value_words(field.annotation), default_words(field), field.description or doc_line(field)
        for inner, between in inner_models(field.annotation):
            yield from key_rows(inner, f"{key}{between}.")


def doc_line(field: FieldInfo) -> str:
    """The first line of the docstring of a field's model, for a field without a description."""
    for inner, _ in inner_models(field.annotation):
        return (inspect.getdoc(inner) or "").partition("\n")[0]
    return ""


def inner_models(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The models in an annotation, each with the suffix of its key: ``.<name>`` for a map, ``[]`` for a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    between = {dict: ".<name>", list: "[]"}.get(typing.get_origin(annotation), "")
    for part in typing.get_args(annotation):
        yield from ((model, between + after) for model, after in inner_models(part))


def value_words(annotation: Any) -> str:
    """A type in YAML's terms."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, typing.TypeAliasType):
        return value_words(annotation.__value__)
    if origin is typing.Annotated:
        return value_words(parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(value_words(part) for part in parts if part is not type(None))
    if origin is list:
        return f"list of {plural(value_words(parts[0]))}"
    if origin is dict:
        return "map" if parts[1] is Any else f"map of {plural(value_words(parts[1]))}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "block"
    return {int: "integer", float: "number", str: "text", bool: "`true`, `false`", datetime.date: "date"}.get(
        annotation, "any"
    )


def plural(words: str) -> str:
    """The plural of what `value_words` returns."""
    first, between, rest = words.partition(" of ")
    return f"{first}s{between}{rest}"


def default_words(field: FieldInfo) -> str:
    """The default as YAML, ``required``, or nothing if it is None."""
    if field.is_required():
        return "required"
    if field.default in (None, "", PydanticUndefined):
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


# --- what is registered


def built_in[T](hook: str, kind: type[T]) -> list[T]:
    """What the built-in plugins register; other installed packages do not belong on the pages."""
    return [thing for plugin, thing in owned(hook, kind).values() if plugin in BUILT_IN_PLUGINS]


def strategies() -> str:
    """One section per strategy: what it does, its arguments, and published models written with it."""
    return "\n".join(_strategy(one) for one in built_in("register_init_strategies", InitStrategy))


def _strategy(one: InitStrategy[Any]) -> str:
    described = (inspect.getdoc(one.plan) or "").partition("\nRaises:")[0]
    rows = list(key_rows(one.args, ""))
    return (
        f"(strategy-{one.name})=\n\n### `{one.name}`\n\n{sentence(one.summary)} Source: {one.source}.\n\n"
        f"{table(('argument', 'value', 'default', 'meaning'), rows)}\n\n{rst(described)}\n"
    )


def initializers() -> str:
    """One row per initializer."""
    rows = []
    for one in built_in("register_layer_initializers", LayerInitializer):
        args = "; ".join(f"{key}: {said}" for key, _, _, said in key_rows(one.args, ""))
        rows.append((f"`{one.name}`", one.summary, args, one.source))
    return table(("initializer", "the new layer", "arguments", "source"), rows)


def formatters() -> str:
    """One row per formatter, by the kind of training."""
    kinds = (
        ("Instruction tuning (no `rl:`)", "register_sft_formatters", SFTFormatter),
        (
            "Preference training (`rl: dpo`, `ipo`, `orpo`, `simpo`, `kto`)",
            "register_preference_formatters",
            PreferenceFormatter,
        ),
        ("`rl: kto` only", "register_unpaired_formatters", UnpairedFormatter),
    )
    parts = []
    for title, hook, kind in kinds:
        rows = [
            (
                f"`solar_plugins.{one.name}`",
                one.summary,
                ", ".join(f"`{column}`" for column in one.columns),
                ", ".join(f"`{column}`" for column in one.optional_columns or ()),
            )
            for one in built_in(hook, kind)
        ]
        parts.append(f"{title}:\n\n{table(('`type:`', 'a row has', 'needs the columns', 'also reads'), rows)}\n")
    return "\n".join(parts)


def dpo_settings() -> str:
    """One row per named setting."""
    rows = [
        (
            f"`{one.name}`",
            ", ".join(f"`{key}: {value}`" for key, value in one.values.items()),
            f"{one.global_batch} pairs",
            one.source,
        )
        for one in built_in("register_dpo_configs", DPOConfig)
    ]
    return table(("`solar.dpo`", "fills in", "global batch", "source"), rows)


def recipes() -> str:
    """One row per shipped recipe: its name and the first sentence of its head."""
    top = recipe_directory()
    rows = [(f"`recipes/{path.relative_to(top)}`", recipe_summary(path)) for path in recipe_files(top)]
    return table(("recipe", "what it does"), rows)


def extras() -> str:
    """One row per command, or part of a command, that needs more than the core."""
    rows = [
        (f"`{need}`" if need.startswith(("solar", "recipes")) else need, f"`{extra}`", ", ".join(PACKAGES[extra]))
        for need, extra in EXTRA_OF.items()
    ]
    return table(("for", "extra", "brings"), rows)


def hooks() -> str:
    """One row per hook: its arguments, and the first line of its docstring."""
    rows = [
        (f"`{name}({', '.join(inspect.signature(hook).parameters)})`", (inspect.getdoc(hook) or "").partition("\n")[0])
        for name, hook in vars(hookspecs).items()
        if inspect.isfunction(hook) and hook.__module__ == hookspecs.__name__
    ]
    return table(("hook", "purpose"), rows)


REGISTERED = {
    "hooks": hooks,
    "extras": extras,
    "strategies": strategies,
    "initializers": initializers,
    "formatters": formatters,
    "dpo-settings": dpo_settings,
    "recipes": recipes,
}


class Registered(SphinxDirective):
    """Everything of one kind that the package registers; the argument is a key of `REGISTERED`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The tables."""
        return self.parse_text_to_nodes(REGISTERED[self.arguments[0]](), allow_section_headings=True)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    if not rows:
        return "No arguments."
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def sentence(summary: str) -> str:
    """A summary with an initial capital and a full stop."""
    return summary[:1].upper() + summary[1:].rstrip(".") + "."


def rst(docstring: str) -> str:
    """A reStructuredText docstring for a Markdown page."""
    return f"```{{eval-rst}}\n{docstring.strip()}\n```"


# --- gallery

GALLERY = "_static/gallery.html"


class Gallery(SphinxDirective):
    """The page of `solar recipes gallery`, in a frame."""

    def run(self) -> list[nodes.Node]:
        """The frame, and a link to the page alone."""
        link = f'<p><a href="{GALLERY}">Open it as a page of its own</a></p>'
        frame = f'<iframe class="gallery" title="Gallery" src="{GALLERY}"></iframe>'
        return [nodes.raw("", link + frame, format="html")]


def write_gallery_page(app: Sphinx, error: Exception | None) -> None:
    """Write the page next to the theme's files."""
    if error is None and app.builder.format == "html":
        write_gallery(
            entries_of(recipe_directory(), "solar_plugins"), Path(app.outdir, GALLERY), "Recipes of solar_plugins"
        )


# --- marks


class ShowMarks(SphinxTransform):
    """Show readers what a marked example needs."""

    default_priority = 500

    def apply(self, **options: Any) -> None:
        """Replace the comment with the sentence."""
        for node in list(self.document.findall(nodes.raw)):
            if mark := re.fullmatch(r"<!-- needs: ([a-z, ]+) -->", node.astext().strip()):
                said = " ".join(NEEDS[name.strip()] for name in mark[1].split(","))
                node.replace_self(nodes.paragraph(said, said, classes=["needs"]))


# --- docstrings


def only_stable(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Skip the computed attributes of `BaseCheckpoint`: only its fields are stable."""
    function = getattr(thing, "fget", None) or getattr(thing, "func", None) or thing
    return True if getattr(function, "__qualname__", "").startswith("BaseCheckpoint.") else None


def stable_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> nodes.Node | None:
    """Link a name to `solar_plugins.api` where autodoc uses the module that defines it."""
    target = str(node.get("reftarget"))
    if node.get("refdomain") != "py" or not target.startswith("solar_plugins."):
        return None
    name = f"solar_plugins.api.{target.rpartition('.')[2]}"
    return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives and the transform to Sphinx."""
    app.add_directive("solar-keys", ModelKeys)
    app.add_directive("solar-registered", Registered)
    app.add_directive("solar-gallery", Gallery)
    app.add_transform(ShowMarks)
    app.connect("missing-reference", stable_name)
    app.connect("autodoc-skip-member", only_stable)
    app.connect("build-finished", write_gallery_page)
    return {"parallel_read_safe": True}
