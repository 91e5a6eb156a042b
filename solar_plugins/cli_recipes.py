"""The commands ``solar recipes ...``. Each calls one function of the package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from solar_plugins.errors import SolarError
from solar_plugins.plugins.recipe_packs import (
    copy_recipes,
    recipe_files,
    recipe_needs,
    recipe_packs,
    recipe_summary,
)
from solar_plugins.text import counted, printable


@click.group()
def recipes() -> None:
    """List, copy, fetch and check recipes: the built-in ones, those of other packages, and your own."""


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes, one per line: name, purpose, requirements."""
    for name, pack in recipe_packs().items():
        for path in recipe_files(pack.directory):
            needs = f"  [{recipe_needs(path)}]" if recipe_needs(path) else ""
            click.echo(f"{name}/{path.relative_to(pack.directory)}  {recipe_summary(path)}{needs}")


@recipes.command("copy")
@click.argument("names", nargs=-1, metavar="[NAME.yml]... [DIRECTORY]")
def copy(names: tuple[str, ...]) -> None:
    """Copy all recipes, or those with a NAME, into DIRECTORY (default: ./recipes), ready to run and edit.

    A NAME is one of `solar recipes list`; its last part is enough if no other recipe has it. A recipe is copied with
    the files that it needs: its DeepSpeed configuration, the stages of a pipeline.
    """
    directories = [name for name in names if not name.endswith((".yml", ".yaml"))]
    if len(directories) > 1:
        raise click.UsageError(f"give one directory, not {', '.join(directories)}; names of recipes end in .yml")
    recipe_names = [name for name in names if name not in directories]
    for path in copy_recipes(recipe_packs(), Path(*directories or ["recipes"]), recipe_names):
        click.echo(path)


@recipes.command("new-pack")
@click.argument("name")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
def make_pack(name: str, directory: Path | None) -> None:
    """Make a pip-installable package of recipes called NAME in DIRECTORY (default: ./NAME), with a test of them."""
    from solar_plugins.sharing.new_pack import new_pack

    for path in new_pack(name, directory):
        click.echo(path)


@recipes.command("fetch")
@click.argument("source", metavar="ORG/MODEL[@REVISION]|DIR")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write.  [default: the model's name]")
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def fetch_recipes(source: str, output: Path | None, as_json_text: bool) -> None:
    """Find the recipes in a model repository or a folder, and write them with a note of where they come from.

    Finds recipe, merge, mixture and pipeline files, YAML in cards of Axolotl and mergekit, lineages and bundles.
    Downloads small text files only. Nothing that is fetched is executed.
    """
    from solar_plugins.sharing.fetch import as_json, as_text, fetch

    fetched, folder = fetch(source, output)
    click.echo(json.dumps(as_json(fetched, folder), indent=2) if as_json_text else as_text(fetched, folder))


@recipes.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--gpu", "gpus", multiple=True, metavar="NAME|GB", help="The training must fit: H100, 8xA100, 24. Repeatable."
)
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def check_recipes(path: Path, gpus: tuple[str, ...], as_json_text: bool) -> None:
    """Check a recipe, merge, mixture, pipeline, bundle or folder at PATH without running it. Errors exit with 1."""
    from solar_plugins.sharing.check import as_json, as_text, check, has_errors

    findings = check(path, gpus=gpus or None)
    click.echo(json.dumps(as_json(findings), indent=2) if as_json_text else as_text(findings))
    if has_errors(findings):
        raise SystemExit(1)


@recipes.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--gpu", "gpus", multiple=True, metavar="NAME|GB", help="Estimate the memory on: 8xH100, 24. Repeatable.")
@click.option("--base", help="A config.json, directory or hub id in place of the base, for plan and memory.")
def show_recipe(path: Path, gpus: tuple[str, ...], base: str | None) -> None:
    """Show what a recipe, merge, mixture, pipeline, bundle or folder at PATH does, needs and costs."""
    from solar_plugins.sharing.show import show

    click.echo(show(path, gpus=gpus, base=base))


@recipes.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def diff_recipes(first: Path, second: Path, as_json_text: bool) -> None:
    """Show what FIRST and SECOND differ in by meaning: recipes, merges, mixtures, pipelines, bundles or folders.

    Defaults are filled in; order and spelling do not count. Exits with 0 if there is no difference, 1 if there is one,
    and 2 if a file cannot be used.
    """
    from solar_plugins.sharing.meaning import as_json, as_text, differences, meanings

    try:
        changes = differences(*meanings(first, second))
    except SolarError as error:
        click.echo(f"Error: {printable(str(error))}", err=True)
        raise SystemExit(2) from None
    click.echo(json.dumps(as_json(changes), indent=2) if as_json_text else as_text(changes))
    raise SystemExit(1 if changes else 0)


@recipes.command("gallery")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="gallery.html",
    show_default=True,
    help="The HTML file to write.",
)
def gallery(folder: Path | None, output: Path) -> None:
    """Write a page of all installed recipes, or of those below FOLDER: stage, base, layers, memory, status, results.

    The page is one file that can be sorted and filtered in a browser, without a server. Nothing is downloaded.
    """
    from solar_plugins.sharing.gallery import entries_of, gallery_of_packs, write_gallery

    entries = entries_of(folder) if folder else gallery_of_packs()
    count = write_gallery(entries, output, f"Recipes in {folder.resolve().name}" if folder else "Installed recipes")
    click.echo(f"{output}: {counted(count, 'recipe')}")


@recipes.command("share")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "repo", required=True, metavar="ORG/NAME", help="The model repository on the Hub.")
@click.option("--yes", is_flag=True, help="Upload it; without this option it is only built, shown and checked.")
@click.option("--public", is_flag=True, help="Make a new repository public.  [default: private]")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the bundle; an earlier bundle there is replaced.  [default: NAME]",
)
@click.option(
    "--results", multiple=True, type=click.Path(path_type=Path), help="A file of results of lm_eval. Repeatable."
)
@click.option("--report", type=click.Path(path_type=Path), help="The JSON file that `solar report` wrote.")
def share(
    run: Path,
    repo: str,
    yes: bool,
    public: bool,
    output: Path | None,
    results: tuple[Path, ...],
    report: Path | None,
) -> None:
    """Share a finished RUN: a recipe, a pipeline, or the output folder of a training.

    Writes a bundle: the recipes without paths of this machine, the plan, hashes of the data, package versions, losses
    and a card.
    """
    from solar_plugins.sharing.share import share as share_run

    share_run(run, repo, yes=yes, public=public, output=output, results=results, report=report)


@recipes.command("reproduce")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps of each training.  [default: all]")
@click.option("--stage", "stages", multiple=True, metavar="STAGE", help="Repeat this stage alone. Repeatable.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable: a path or a hub id. Repeatable.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="reproduction",
    show_default=True,
    help="A new folder for recipes, logs and models.",
)
@click.option("--launch", help="Text before `-m axolotl.cli.train`.  [default: accelerate launch --num_processes N]")
@click.option("--trust-code", is_flag=True, help="Run a bundle that runs third-party code.")
def reproduce(
    bundle: Path,
    steps: int | None,
    stages: tuple[str, ...],
    settings: tuple[str, ...],
    output: Path,
    launch: str | None,
    trust_code: bool,
) -> None:
    """Train the stages of a BUNDLE again, and compare the rows and the loss of each step.

    Lists first what differs here: packages, devices, data, base. With --steps the training ends early, with the
    schedule of the entire run.
    """
    from solar_plugins.sharing.reproduce import reproduce as reproduce_bundle

    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: expected NAME=VALUE, such as BASE_MODEL=org/model")
        values[name] = value
    reproduce_bundle(
        bundle, steps=steps, stages=stages, values=values, output=output, launch=launch, trust_code=trust_code
    )


@recipes.command("card")
@click.argument("directory", type=click.Path(path_type=Path))
def card(directory: Path) -> None:
    """Write the model card of the model in DIRECTORY: what it was made from, by which stages, under which license.

    For a model that mergekit merged, run it where mergekit ran. `solar run` and training write the card by themselves.
    What you wrote into README.md stays.
    """
    from solar_plugins.lineage.merges import describe

    described = describe(directory)
    click.echo(described.path)
    for warning in described.warnings:
        click.echo(printable(f"Warning: {warning}"), err=True)
