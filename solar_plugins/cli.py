"""The ``solar`` command, also available as ``axolotl solar``. Each command calls one function of the package."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from functools import reduce, wraps
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import click

from solar_plugins import __version__
from solar_plugins.cli_recipes import recipes
from solar_plugins.errors import ArgsError, DataError, SolarError
from solar_plugins.logs import debug_trace
from solar_plugins.report.plan_report import PlanReport, as_json, as_text, plan_for_base, plan_for_recipe
from solar_plugins.solar_block import InitArgs
from solar_plugins.text import format_bytes, printable
from solar_plugins.upscaling.strategies import init_strategies, plan_of


class StrategyCommand(click.Command):
    """A command that also has an option for each argument of each registered strategy, including plugins'."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters of the command, followed by those of the strategies."""
        own = super().get_params(ctx)
        taken = {name for param in own for name in (*param.opts, param.name)}
        return [*own, *(option for option in _strategy_options() if option.name not in taken)]


def _strategy_options() -> list[click.Option]:
    helps: dict[str, list[str]] = {}
    for strategy in init_strategies().values():
        for name, field in strategy.args.model_fields.items():
            helps.setdefault(name, []).append(f"[{strategy.name}] {field.description or ''}".strip())
    return [click.Option([f"--{name.replace('_', '-')}"], help="; ".join(texts)) for name, texts in helps.items()]


def _init_args(strategy: str, arguments: dict[str, str | None], trusted_keys: tuple[str, ...] = ()) -> InitArgs:
    given = {key: value for key, value in arguments.items() if value is not None}
    return InitArgs.model_validate({"strategy": strategy, "trust_config_keys": list(trusted_keys) or None, **given})


_trust_config_key = click.option(
    "--trust-config-key",
    "trusted_keys",
    multiple=True,
    metavar="KEY",
    help="Trust this key of the base's config.json: it does not describe individual layers. Repeatable.",
)


_duplicates = click.option(
    "--duplicates",
    metavar="INITIALIZER",
    help="How to initialize the second and later copies of a base layer: identity, scaled, noise, average, or YAML "
    "with arguments: '{initializer: scaled, factor: 0.5}'.",
)


_trust_remote_code = click.option(
    "--trust-remote-code", is_flag=True, help="Accept a base that ships custom modeling code. The code is not run."
)


class PlanSource(NamedTuple):
    """Where a plan comes from: a recipe, or a base and the arguments of a strategy."""

    recipe: Path | None
    base: str | None
    revision: str | None
    strategy: str | None
    trust_remote_code: bool
    trusted_keys: tuple[str, ...]
    arguments: dict[str, str | None]

    @property
    def has_options(self) -> bool:
        """Whether an option was given that only --base takes."""
        values = (self.revision, self.strategy, *self.arguments.values())
        return self.trust_remote_code or bool(self.trusted_keys) or any(value is not None for value in values)

    def report(self) -> PlanReport:
        """The plan."""
        recipe, base = self.recipe, self.base
        if (recipe is None) == (base is None):
            raise click.UsageError("give either a RECIPE, or --base and the options of a strategy")
        if recipe is not None and (recipe.is_dir() or recipe.name == "config.json"):
            raise click.UsageError(f"{recipe} is a model, not a recipe; use --base {recipe}")
        if recipe is not None:
            if self.has_options:
                raise click.UsageError("these options conflict with RECIPE; use --base, or set them in the recipe")
            return plan_for_recipe(recipe)
        assert base is not None
        init = _init_args(self.strategy or "dus", self.arguments, self.trusted_keys)
        return plan_for_base(base, self.revision, init, where="", trust_remote_code=self.trust_remote_code)


def _recipe_or_base(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument and the options of `PlanSource` to a command, which receives them as ``source``."""
    own = signature(command).parameters.keys() - {"source"}

    @wraps(command)
    def with_source(**values: Any) -> Any:
        given = {name: values.pop(name) for name in own}
        source = {name: values.pop(name) for name in PlanSource._fields if name != "arguments"}
        return command(PlanSource(**source, arguments=values), **given)

    options = (
        _duplicates,
        _trust_config_key,
        _trust_remote_code,
        click.option("--strategy", help="With --base: the upscaling strategy.  [default: dus]"),
        click.option("--revision", help="With --base: branch, tag or commit of a hub model."),
        click.option("--base", help="The base, instead of a recipe: a directory, a config.json or a hub id."),
        click.argument("recipe", required=False, type=click.Path(path_type=Path)),
    )
    return reduce(lambda made, option: option(made), options, with_source)


class SolarGroup(click.Group):
    """Prints a `SolarError` or `OSError` as one paragraph and exits with status 1. Any other exception is a bug.

    With ``SOLAR_PLUGINS_DEBUG=1`` the traceback is printed before the paragraph.
    """

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, whether it was called as ``solar`` or ``axolotl solar``."""
        logger = logging.getLogger("axolotl.solar_plugins")
        if not logger.hasHandlers():
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.INFO)
        try:
            return super().invoke(ctx)
        except SolarError as error:
            click.echo(printable(debug_trace(error)), err=True, nl=False)
            # Names in it may come from files of others.
            raise click.ClickException(printable(str(error))) from None
        except BrokenPipeError:
            raise  # The reader closed the pipe, as in `solar plan ... | head`; click exits silently.
        except OSError as error:
            click.echo(debug_trace(error), err=True, nl=False)
            raise click.ClickException(
                f"{error.filename or 'a file'}: cannot be read or written ({error.strerror or error}); "
                "check the path and its permissions"
            ) from None


@click.group(cls=SolarGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, help="Show the version and exit.")
@click.option("--verbose", is_flag=True, help="With --version: include Python, the system, all dependencies, plugins.")
@click.pass_context
def solar(context: click.Context, version: bool, verbose: bool) -> None:
    """Depth up-scaling: plan, write, verify, export and inspect upscaled models."""
    if verbose and not version:
        raise click.UsageError("--verbose requires --version")
    if verbose:
        from solar_plugins.versions import version_lines

        click.echo("\n".join(version_lines()))
    elif version:
        click.echo(f"solar, version {__version__}")
    if version:
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(2)


@solar.command(cls=StrategyCommand)
@_recipe_or_base
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Plot base layers against new layers to FILE.png or FILE.svg."
)
@click.option(
    "--memory", is_flag=True, help="Estimate the training memory per GPU of any RECIPE instead, by component."
)
@click.option(
    "--gpus",
    type=click.IntRange(1),
    help="With --memory: total GPUs.  [default: the pipeline's, WORLD_SIZE, or 1]",
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(1),
    help="With --memory: GB per GPU.  [default: the pipeline's]",
)
def plan(
    source: PlanSource,
    as_json_text: bool,
    plot: Path | None,
    memory: bool,
    gpus: int | None,
    gpu_memory: float | None,
) -> None:
    """Show the upscaled model of a RECIPE, or of a --base and a strategy: layers, seams, size, memory.

    Needs only the base's config.json. If RECIPE's own plan has already upscaled its base, the base is shown as it is.
    With --memory, --base replaces the base_model of the first stage in RECIPE's chain.
    """
    if memory:
        if source.recipe is None or source.has_options or plot:
            raise click.UsageError("--memory needs a RECIPE, and allows only --base, --gpus, --gpu-memory and --json")
        click.echo(_memory_text(source.recipe, source.base, gpus, gpu_memory, as_json_text=as_json_text))
        return
    if gpus or gpu_memory:
        raise click.UsageError("--gpus and --gpu-memory require --memory")
    report = source.report()
    if plot:
        from solar_plugins.report.plan_picture import draw_plan

        draw_plan(report.plan, plot)
        click.echo(f"plot: {plot}", err=True)
    click.echo(json.dumps(as_json(report), indent=2) if as_json_text else as_text(report))


def _memory_text(
    recipe: Path, base: str | None, gpus: int | None, gpu_gigabytes: float | None, *, as_json_text: bool
) -> str:
    from solar_plugins.memory.memory_report import as_json as memory_as_json
    from solar_plugins.memory.memory_report import as_text as memory_as_text
    from solar_plugins.memory.memory_report import memory_of_recipe
    from solar_plugins.pipeline import is_pipeline, read_pipeline

    trained: list[tuple[Path, Mapping[str, Any]]] = [(recipe, {})]
    if is_pipeline(recipe):
        pipeline = read_pipeline(recipe)
        stages, gpus, gpu_gigabytes = pipeline.stages, gpus or pipeline.gpus, gpu_gigabytes or pipeline.gpu_memory
        trained = [(stage.file, stage.overrides) for stage in stages if stage.kind == "recipe" and stage.file]
    reports = [memory_of_recipe(path, base, gpus, gpu_gigabytes, overrides) for path, overrides in trained]
    if not as_json_text:
        return "\n\n".join(map(memory_as_text, reports))
    content = [memory_as_json(report) for report in reports]
    return json.dumps(content if is_pipeline(recipe) else content[0], indent=2)


@solar.command(cls=StrategyCommand)
@click.argument("base")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--strategy", default="dus", show_default=True, help="The upscaling strategy.")
@click.option("--copy", is_flag=True, help="Copy all weights, even where the file system could share blocks with BASE.")
@_trust_remote_code
@_trust_config_key
@_duplicates
def upscale(
    base: str,
    out: Path,
    revision: str | None,
    strategy: str,
    copy: bool,
    trust_remote_code: bool,
    trusted_keys: tuple[str, ...],
    **arguments: str | None,
) -> None:
    """Upscale BASE (a directory or hub id) and write the result to the directory OUT. No Axolotl, no GPU needed."""
    from solar_plugins.upscaling.base_model import find_base
    from solar_plugins.upscaling.checkpoint import write_checkpoint

    found = find_base(base, revision, trust_remote_code=trust_remote_code, trusted_keys=trusted_keys)
    init = _init_args(strategy, arguments)
    found, layer_plan = found.with_donors(plan_of(init, found.num_layers, where=""), init)
    written = write_checkpoint(found, layer_plan, out, copy=copy)
    click.echo(f"{out}: {layer_plan}{'' if written else ' (already there, complete)'}")


@solar.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--base", help="The base it was created from; required unless that is a hub model.")
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option(
    "--donor",
    "donors",
    multiple=True,
    help="A donor model, in the plan's order. Repeatable; required unless all donors are hub models.",
)
def verify(directory: Path, base: str | None, revision: str | None, donors: tuple[str, ...]) -> None:
    """Check the upscaled checkpoint in DIRECTORY against its base and plan, byte by byte. Before training only."""
    from solar_plugins.upscaling.verify import success_line, verify_checkpoint

    verified = verify_checkpoint(directory, base, revision, donors)
    if verified.note:
        click.echo(f"Note: {verified.note}; every byte was compared nevertheless", err=True)
    click.echo(success_line(verified))


@solar.command()
@click.argument("base")
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="JSON Lines file, one text per line. Repeatable; each file gets a column.",
)
@click.option(
    "--plans", type=click.Path(path_type=Path), help="YAML list of solar.init blocks to measure instead of all repeats."
)
@click.option(
    "--target-layers", type=click.IntRange(2), help="Also print the solar: block of the best plan with this depth."
)
@click.option("--sequence-len", default=512, show_default=True, type=click.IntRange(2), help="Tokens per document.")
@click.option("--limit-tokens", type=click.IntRange(2), help="Use at most this many tokens of each text file.")
@click.option(
    "--memory",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.01),
    help="GB of memory to use on top of the weights.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="[default: bfloat16 on a GPU, float32 on a CPU]"
)
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--trust-remote-code", is_flag=True, help="Run the base's custom modeling code.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="probe",
    show_default=True,
    help="Directory for the page, the plot and the results; an interrupted probe resumes from it.",
)
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def probe(
    base: str, texts: tuple[Path, ...], plans: Path | None, output: Path, as_json_text: bool, **options: Any
) -> None:
    """Measure the loss of each layer plan of BASE before training. Tries repeating every block of layers, DUS too."""
    from solar_plugins.report.probe import probe_base

    click.echo(probe_base(base, texts, plans, output, as_json_text=as_json_text, **options))


@solar.command(cls=StrategyCommand)
@_recipe_or_base
def mergekit(source: PlanSource) -> None:
    """Print the plan of a RECIPE, or of a --base and a strategy, as YAML for mergekit-yaml."""
    import yaml

    from solar_plugins.upscaling.mergekit import passthrough_merge, weights_of

    report = source.report()
    if report.already_grown:
        raise ArgsError(f"base_model: {report.base.name} was already upscaled by this plan; give the base it came from")
    # `source.report()` has already checked that the user trusts the base's code.
    trusted_keys = report.base.decoder.trusted_keys
    weights, *donors = (
        weights_of(name, revision, trust_remote_code=True, trusted_keys=trusted_keys)
        for name, revision in (
            (report.base.name, report.base.revision),
            *((donor.name, donor.revision) for donor in report.base.donors),
        )
    )
    references = [donor.model for donor in donors]
    merge = passthrough_merge(weights.model, report.base.decoder, report.plan, weights.dtypes, references)
    click.echo(f"# {report.plan}\n{yaml.safe_dump(merge, sort_keys=False)}", nl=False)


@solar.command()
@click.argument("mixture", type=click.Path(path_type=Path))
@click.option("--processes", type=click.IntRange(1), help="Worker processes; the output does not depend on it.")
@click.option(
    "--part", metavar="R/W", help="Only filter the rows of part R of W (from 0), for example on a machine each."
)
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def mix(mixture: Path, processes: int | None, part: str | None, as_json_text: bool) -> None:
    """Build the datasets of a MIXTURE file: drop excluded tasks and benchmark overlap, cap sizes, write JSON Lines."""
    from solar_plugins.data.mixture import make_mixture, make_part
    from solar_plugins.data.mixture_parts import Part, part_as_text
    from solar_plugins.data.mixture_report import REPORT, as_text

    if part is not None:
        share = Part.of(part)
        found, made = make_part(mixture, share, processes)
        text = (found.folder / REPORT).read_text().rstrip() if as_json_text else part_as_text(share, found, made=made)
        click.echo(text)
        return
    mixed, made = make_mixture(mixture, processes)
    output = Path(mixed.mixture["output"])
    text = (output / REPORT).read_text().rstrip() if as_json_text else as_text(mixed, output, made=made)
    click.echo(text)


@solar.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--rows", default=3, show_default=True, type=click.IntRange(1), help="Rows per dataset.")
@click.option("--tokenizer", help="Directory or hub id.  [default: the recipe's tokenizer_config or base_model]")
def preview(recipe: Path, rows: int, tokenizer: str | None) -> None:
    """Print the first rows of a RECIPE's datasets as training sees them: text, loss mask, or why they are dropped."""
    from solar_plugins.evaluation.preview import preview as preview_rows

    for text in preview_rows(recipe, rows, tokenizer):
        click.echo(text)


@solar.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def h6(results: tuple[Path, ...], as_json_text: bool) -> None:
    """Show lm_eval RESULTS (files or directories) as the paper's H6 table, alongside the published scores."""
    from solar_plugins.evaluation.h6 import as_json as table_as_json
    from solar_plugins.evaluation.h6 import as_text as table_as_text
    from solar_plugins.evaluation.h6 import read_scores, result_files

    models = read_scores(result_files(results))
    click.echo(json.dumps(table_as_json(models), indent=2) if as_json_text else table_as_text(models))


@solar.command("sdpo-order")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--type", "formatter", help="Preference formatter for the rows, named as in a recipe.")
@click.option(
    "--max-length",
    default=1024,
    show_default=True,
    type=click.IntRange(2),
    help="Maximum tokens of prompt and response.",
)
@click.option("--batch-tokens", default=4096, show_default=True, type=click.IntRange(1), help="Tokens per batch.")
@click.option("--limit", type=click.IntRange(1), help="Score a random sample of this many pairs per file.")
@click.option("--seed", default=42, show_default=True, help="Random seed for subsampling and formatters.")
@click.option(
    "--max-bad-share",
    default=0.02,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Fail if a larger share of rows is bad.",
)
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def sdpo_order(model: Path, files: tuple[Path, ...], as_json_text: bool, **options: Any) -> None:
    """Order preference FILES (JSON Lines) from easy to hard for stepwise DPO starting from MODEL.

    The more pairs of a dataset the model already ranks as labeled, the easier it is (arXiv:2403.19270).
    """
    from solar_plugins.evaluation.sdpo_order import as_json as order_as_json
    from solar_plugins.evaluation.sdpo_order import as_text as order_as_text
    from solar_plugins.evaluation.sdpo_order import order_sets

    ordered = order_sets(model, files, **options)
    click.echo(json.dumps(order_as_json(ordered), indent=2) if as_json_text else order_as_text(ordered))


solar.add_command(recipes)


@solar.group()
def cache() -> None:
    """List and remove the upscaled checkpoints that recipes have cached."""


_cache_dir = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="The recipes' solar.cache_dir.  [default: $HF_HOME/solar_plugins]",
)


@cache.command("list")
@_cache_dir
def list_cache(cache_dir: Path | None) -> None:
    """List the checkpoints, one per line: name, size, date, base, plan."""
    from solar_plugins.upscaling.cache import cache_directory, cache_lines

    click.echo("\n".join(cache_lines(cache_directory(cache_dir))))


@cache.command("remove")
@click.argument("names", nargs=-1, required=True)
@_cache_dir
def remove_from_cache(names: tuple[str, ...], cache_dir: Path | None) -> None:
    """Remove checkpoints by NAME. A recipe recreates the one it needs. Do not remove one that a run is reading."""
    from solar_plugins.upscaling.cache import cache_directory, remove_cached

    for name in names:
        click.echo(f"{name}: removed, {format_bytes(remove_cached(cache_directory(cache_dir), name))} freed")


@solar.command("plugins")
def list_plugins() -> None:
    """List the registered strategies, initializers, formatters, settings and recipes, with the package of each."""
    from solar_plugins.registered import registered_lines

    click.echo("\n".join(registered_lines()))


@solar.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--no-ask", is_flag=True, help="Send no requests; write the output from the stored answers alone.")
@click.option("--json", "as_json_text", is_flag=True, help="Print JSON.")
def maths(recipe: Path, no_ask: bool, as_json_text: bool) -> None:
    """Generate mathematics data with a served model, as a RECIPE says: rephrase, solve, check answers, write rows.

    Every answer is stored when it arrives. After an interruption, the same command asks only for what is missing.
    """
    from solar_plugins.maths.generate import make_maths
    from solar_plugins.maths.output import REPORT, as_text

    try:
        report, args = make_maths(recipe, ask=not no_ask)
    except KeyboardInterrupt:
        click.echo("Interrupted. All answers so far are stored; run the command again to go on", err=True)
        raise SystemExit(130) from None
    output = Path(args.output)
    click.echo((output / REPORT).read_text(encoding="utf-8").rstrip() if as_json_text else as_text(report, output))
    if not report.accepted:
        raise DataError(f"{output}: no row passed the checks; the report has examples. Check the model and the prompts")


@solar.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("later", nargs=-1, metavar="[STAGE]...", type=click.Path(path_type=Path))
@click.option(
    "--held-out", type=click.Path(path_type=Path), help="JSON Lines file of texts.  [default: the recipe's test data]"
)
@click.option("--prompt", "prompts", multiple=True, help="A text to continue, or a question. Repeatable.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="report.html",
    show_default=True,
    help="The HTML file to write.",
)
def report(
    recipe: Path, later: tuple[Path, ...], held_out: Path | None, prompts: tuple[str, ...], output: Path
) -> None:
    """Compare the base, upscaled and trained models of a completed RECIPE: held-out loss, loss curve, samples.

    To include later stages, give each STAGE as its Axolotl recipe or as the directory of a merged model, or give a
    pipeline file in place of RECIPE and all of them. If their recipes have test data for it, the loss on eval responses
    and the accuracy on eval pairs are measured too.
    """
    from solar_plugins.report.report import write_report

    write_report(recipe, later, held_out=held_out, prompts=prompts, output=output)


@solar.command()
@click.argument("pipeline", type=click.Path(path_type=Path))
@click.option("--from", "start", metavar="STAGE", help="Start with this stage; those before it are taken as they are.")
@click.option("--only", multiple=True, metavar="STAGE", help="Run this stage alone; may be given several times.")
@click.option("--rerun", multiple=True, metavar="STAGE", help="Run this stage again; its output is moved aside first.")
@click.option("--dry-run", is_flag=True, help="Show what would run, and why.")
def run(pipeline: Path, start: str | None, only: tuple[str, ...], rerun: tuple[str, ...], dry_run: bool) -> None:
    """Run the stages of a PIPELINE file, each in its own process; stages that are done are skipped.

    A stage is done while its file and its inputs are unchanged. An interrupted training stage resumes from its newest
    checkpoint that is complete. Nothing is ever deleted.
    """
    from solar_plugins.running.runner import run_pipeline

    run_pipeline(pipeline, start=start, only=only, rerun=rerun, dry_run=dry_run)
