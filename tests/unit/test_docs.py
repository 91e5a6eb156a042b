"""Every command and YAML file in README, tutorial, guides and reference is run, validated, or marked.

A mark is a comment before the example, ``<!-- needs: gpu -->``, which the site shows as a sentence. Marked commands of
other programs are not checked, and marked commands of ours are parsed but not run.
"""

import json
import re
import shutil
import tomllib
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from axolotl_schema import dropped_keys, keys_that_axolotl_drops
from click.testing import CliRunner
from doc_blocks import MARKS, blocks_of, commands_of
from known_models import MISTRAL

from solar_plugins.cli import solar
from solar_plugins.data.mixture_args import MixtureArgs
from solar_plugins.maths.recipe import MathsArgs
from solar_plugins.pipeline import read_pipeline
from solar_plugins.plugins.manager import loaded_plugins
from solar_plugins.recipe import parse_recipe, read_yaml
from solar_plugins.solar_block import InitArgs, parse_solar_block
from solar_plugins.upscaling.strategies import plan_of

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes/README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/guides/*.md")),
    *sorted(ROOT.glob("docs/reference/*.md")),
    *sorted(ROOT.glob("docs/explanation/*.md")),
]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
AXOLOTL_COMMANDS = {"train", "preprocess", "inference", "merge-lora", "merge-sharded-fsdp-weights", "lm-eval"}
RUN = {"cache", "plan", "plugins", "upscale", "verify", "mergekit", "recipes"}
"""Our commands that are run. The others train, load models or read datasets, and have their own tests."""


def of(*languages):
    return pytest.mark.parametrize("block", [one for one in BLOCKS if one.language in languages], ids=str)


def paged(languages):
    pages = {block.page for block in BLOCKS if block.language in languages}
    return pytest.mark.parametrize("page", sorted(pages), ids=lambda page: page.stem)


@contextmanager
def plugins_of(page):
    """Register the plugins that a page's Python defines, as if they were installed."""
    manager, modules = loaded_plugins().manager, []
    for block in BLOCKS:
        if block.page == page and block.language == "python" and "@hookimpl" in block.text:
            module = ModuleType(f"plugin_of_{page.stem}")
            exec(compile(block.text, str(block), "exec"), module.__dict__)
            manager.register(module)
            modules.append(module)
    manager.check_pending()
    try:
        yield modules
    finally:
        for module in modules:
            manager.unregister(module)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """What a reader has: the recipes, the demo's base (tiny here), and the config of Mistral 7B in the Hub cache."""
    import huggingface_hub.constants

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    tiny_llama(tmp_path / "runs/smollm2/SmolLM2-135M", num_layers=30)
    repository = tmp_path / "hub/models--mistralai--Mistral-7B-v0.1"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(MISTRAL))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny_llama(directory, num_layers):
    """Write a Llama checkpoint without torch."""
    import numpy
    from safetensors.numpy import save_file

    config = MISTRAL | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": num_layers}
    config |= {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "torch_dtype": "float32"}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    matrices = [*attention, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
    norms = ["input_layernorm", "post_attention_layernorm"]
    layers = [f"model.layers.{layer}.{name}.weight" for layer in range(num_layers) for name in (*matrices, *norms)]
    square, row = numpy.ones((8, 8), "float32"), numpy.ones(8, "float32")
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", *layers]
    tensors = {name: (row if "norm" in name else square) * at for at, name in enumerate(names)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


# --- examples


def test_examples_are_found_in_every_kind_of_page():
    kinds = {block.page.relative_to(ROOT).parts[:-1]: block.language for block in BLOCKS}
    assert {("docs", "guides"), ("docs", "reference"), ("docs",), ("recipes",), ()} <= kinds.keys()
    assert sum(block.language in ("bash", "console") for block in BLOCKS) > 20
    assert sum(block.language == "yaml" for block in BLOCKS) > 20


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_an_example_says_its_language_and_what_it_needs(block):
    assert block.language in {"bash", "console", "yaml", "python", "toml", "text"}
    assert block.needs <= MARKS


def test_commands_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- needs: gpu, hub -->\n```bash\nA=1 make x && cd y  # z\npython -c '\na\nb'\nsolar m r.yml > f\n```\n\n"
        "```console\n$ solar plan\none\n...\n```\n```{toctree}\nx\n```\n"
    )
    first, second = blocks_of(page)
    assert (first.line, first.language, first.needs) == (2, "bash", {"gpu", "hub"})
    assert [command[:2] for command in commands_of(first)] == [
        (("make", "x"), None),
        (("cd", "y"), None),
        (("python", "-c", "\na\nb"), None),
        (("solar", "m", "r.yml"), "f"),
    ]
    assert [command.expected for command in commands_of(second)] == [("one", "...")]
    assert second.needs == set()


# --- commands


@of("bash", "console")
def test_commands_are_ones_that_exist(block):
    """Our own commands with their options, targets of the Makefile, files; everything else needs a mark."""
    with plugins_of(block.page):
        for command in commands_of(block):
            assert is_known(command.words) or block.needs, f"{' '.join(command.words)}: neither validated nor marked"


def is_known(words):
    """Whether a command can be checked here; if so, check it."""
    program = Path(words[0]).name
    if program == "solar":
        parse(list(words[1:]))
    elif program == "make":
        assert set(words[1:]) <= TARGETS, words
    elif program in ("cd", "export", "set", "."):
        pass
    elif program == "axolotl":
        assert words[1] in AXOLOTL_COMMANDS
        assert_recipe(words[2])
    elif program in ("accelerate", "python", "srun", "torchrun") and "axolotl.cli.train" in words:
        assert_recipe(words[words.index("axolotl.cli.train") + 1])
    elif program == "python" and words[1] == "-c":
        compile(words[2], "-c", "exec")
    elif program == "mergekit-yaml" and words[1].startswith("recipes/"):
        assert_recipe(words[1])
    else:
        named = re.findall(r"(?:solar_plugins|\.)\[([a-z0-9,]+)\]", " ".join(words)) if program == "pip" else []
        assert all(extra in EXTRAS for names in named for extra in names.split(","))
        return False
    return True


def assert_recipe(path):
    assert path.startswith("recipes/"), f"{path}: name a shipped recipe"
    assert (ROOT / path).is_file(), path


def parse(arguments):
    """Parse a command line of `solar` without running it; `click.UsageError` says what is wrong."""
    command = solar
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(click.Context(command), arguments)
    command.make_context(name, arguments)


def test_a_wrong_option_is_detected():
    parse(["plan", "--base", "x", "--drop-layers", "8"])
    for wrong in (["plan", "--base", "x", "--drop-layer", "8"], ["plam", "x"], ["mix"]):
        with pytest.raises(click.UsageError):
            parse(wrong)
    assert is_known(("make", "demo"))
    assert not is_known(("vllm", "serve", "model")), "commands of other programs need a mark"


@paged(("bash", "console"))
def test_commands_run_in_the_order_of_the_page(page, machine):
    run_page(page, machine, lambda words: not loads_a_library(words))


@pytest.mark.slow
@paged(("bash", "console"))
def test_commands_that_load_torch_axolotl_or_matplotlib_run_too(page, machine):
    run_page(page, machine, lambda words: True)


def loads_a_library(words):
    asks_axolotl = words[1:3] in (("recipes", "check"), ("recipes", "diff"))
    return (
        asks_axolotl or words[1] == "verify" or "--plot" in words or (words[1] == "upscale" and "--duplicates" in words)
    )


def run_page(page, folder, chosen):
    with plugins_of(page):
        for block in BLOCKS:
            if block.page == page and block.language in ("bash", "console") and not block.needs:
                for command in commands_of(block):
                    runs = command.words[0] == "solar" and (command.words[1] in RUN or "--dry-run" in command.words)
                    if runs and chosen(command.words):
                        run_one(command, folder)


def run_one(command, folder):
    result = CliRunner().invoke(solar, list(command.words[1:]), catch_exceptions=False)
    differs = command.words[1:3] == ("recipes", "diff")  # as diff does
    assert result.exit_code == (1 if differs else 0), f"{' '.join(command.words)}\n{result.output}"
    if command.output:
        (folder / command.output).write_text(result.stdout)
    if command.expected:
        pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in command.expected)
        assert re.fullmatch(pattern, result.stdout), f"{' '.join(command.words)} prints\n{result.stdout}"


def test_output_that_differs_from_the_page_is_detected(machine):
    from doc_blocks import Command

    shown = Command(
        ("solar", "mergekit", "recipes/smollm2/solar_dus.yml"), None, ("...", "merge_method: linear", "...")
    )
    with pytest.raises(AssertionError, match="prints"):
        run_one(shown, machine)
    run_one(shown._replace(expected=("...", "merge_method: passthrough", "...")), machine)


# --- files


@of("yaml")
def test_a_yaml_example_is_accepted_by_our_own_parsers(block, tmp_path):
    content = yaml.safe_load(block.text)
    with plugins_of(block.page):
        if isinstance(content, list):
            inits = [InitArgs.model_validate(one) for one in content]
        elif "sets" in content:
            MixtureArgs.model_validate(content)
            return
        elif "seeds" in content:
            MathsArgs.model_validate(content)
            return
        elif "stages" in content:
            pipeline = Path(shutil.copytree(ROOT / "recipes", tmp_path / "recipes")) / "example.yml"
            pipeline.write_text(block.text)
            assert len(read_pipeline(pipeline).stages) == len(content["stages"])
            return
        elif "merge_method" in content:  # mergekit's own schema judges it below
            return
        elif "_" in content:  # a sweep
            inits = [parse_solar_block(run).init for run in content["_"]]
        else:
            solar_block = parse_recipe({"base_model": "base"} | content).solar
            inits = [solar_block.init] if solar_block and solar_block.init_args else []
        depth = 30 if "smollm2" in block.text or isinstance(content, list) or "_" in content else 32
        for init in inits:
            assert len(plan_of(init, depth, "solar.init.")) > depth


@pytest.mark.slow
@of("yaml")
def test_yaml_examples_have_no_key_that_their_tool_drops(block):
    """The rest of the recipe is that of the demo, or of its DPO stage where the example has ``rl``."""
    content = yaml.safe_load(block.text)
    if isinstance(content, list) or {"sets", "stages", "_"} & content.keys():
        return  # Axolotl does not read it, or it is a sweep, which the next test reads.
    if "merge_method" in content:
        from mergekit.config import MergeConfiguration

        assert dropped_keys(content, MergeConfiguration.model_validate(content).model_dump(exclude_none=True)) == []
        return
    if {"seeds", "endpoint"} <= content.keys():
        MathsArgs.model_validate(content)  # It refuses unknown keys.
        return
    name = "solar_dpo.yml" if "rl" in content else "solar_dus.yml"
    recipe = read_yaml(ROOT / "recipes/smollm2" / name) | content
    with plugins_of(block.page):
        assert keys_that_axolotl_drops(recipe) == []


@pytest.mark.slow
def test_the_sweep_runs_each_plan_with_each_seed(tmp_path, monkeypatch):
    from axolotl.cli.utils.train import generate_config_files

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (sweep,) = [block for block in BLOCKS if block.language == "yaml" and block.text.startswith("_:")]
    (tmp_path / "sweep.yml").write_text(sweep.text)
    demo = str(ROOT / "recipes/smollm2/solar_dus.yml")
    runs = [read_yaml(Path(path)) for path, _ in generate_config_files(demo, str(tmp_path / "sweep.yml"))]
    plans = [yaml.safe_dump(run["solar"]) for run in yaml.safe_load(sweep.text)["_"]]
    assert len(runs) == 9
    assert {(yaml.safe_dump(run["solar"]), run["seed"]) for run in runs} == set(product(plans, (42, 43, 44)))
    assert {Path(run["output_dir"]).parent.name for run in runs} == {"dus-m6", "dus-m9", "repeat-6-24"}


@of("toml")
def test_a_toml_example_is_valid(block):
    content = tomllib.loads(block.text)
    assert content["project"]["entry-points"]["solar_plugins"]


@of("python")
def test_a_python_example_compiles_and_its_plugin_registers(block):
    compile(block.text, str(block), "exec")
    with plugins_of(block.page) as modules:
        assert bool(modules) == ("@hookimpl" in block.text) or block.page.name == "serve.md"


NAMED = re.compile(r"`((?:recipes|docs|tests|solar_plugins|scripts)/[^`\s]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_targets_and_commands_that_the_text_names_exist(page):
    text = page.read_text()
    for path in NAMED.findall(text):
        assert list(ROOT.glob(path)), path
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in TARGETS, target
    for command in re.findall(r"`solar ([a-z][a-z0-9-]*)[^`]*`", text):
        assert command in solar.commands, command


# --- generated text


@pytest.mark.slow
def test_the_tutorials_code_generates_text_from_an_output_folder(training_folder, monkeypatch, capsys):
    """The same code on a tiny model; `test_real_model.py` trains the real one for a step."""
    (training_folder / "runs/smollm2").mkdir(parents=True)
    (training_folder / "base").rename(training_folder / "runs/smollm2/dus")
    monkeypatch.chdir(training_folder)
    codes = [
        command.words[2]
        for block in BLOCKS
        if block.page.name in ("tutorial.md", "README.md") and block.language == "bash"
        for command in commands_of(block)
        if command.words[1:2] == ("-c",)
    ]
    assert codes
    for code in codes:
        exec(code, {})
        prompt = re.search(r'write\("([^"]+)"', code)[1]
        assert prompt in capsys.readouterr().out


@pytest.mark.slow
def test_the_axolotl_commands_of_the_pages_exist(tmp_path, monkeypatch):
    from axolotl.cli.main import cli

    (tmp_path / "sweep.yml").touch()
    monkeypatch.chdir(tmp_path)
    assert set(cli.list_commands(click.Context(cli))) >= AXOLOTL_COMMANDS
    for block in BLOCKS:
        for command in commands_of(block) if block.language == "bash" else ():
            if command.words[0] == "axolotl":
                one = cli.get_command(click.Context(cli), command.words[1])
                one.make_context(command.words[1], [str(ROOT / command.words[2]), *command.words[3:]])
