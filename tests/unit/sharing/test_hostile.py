"""Hostile recipes, bundles, cards and servers, each met by the commands that would meet them.

The table in docs/explanation/hostile-recipes.md is made from `CASES`: run this file as a program to write it.
"""

import hashlib
import html.parser
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner
from stand_in_hub import headers

from solar_plugins.cli import solar
from solar_plugins.lineage.cards import BEGIN, END, card
from solar_plugins.lineage.record import Lineage
from solar_plugins.sharing import hub_session as hub_module
from solar_plugins.sharing import schemas
from solar_plugins.sharing.bundle import BundleStage, Variable, write_bundle

PAGE = Path(__file__).parents[3] / "docs/explanation/hostile-recipes.md"
MAX_SECONDS = 20

RECIPE = """\
base_model: org/base
datasets: [{path: org/data, type: alpaca}]
output_dir: out/trained
learning_rate: 1.0e-5
micro_batch_size: 1
seed: 1
"""
PIPELINE = "records: out/runs\nlaunch: accelerate launch\nstages:\n- {name: sft, recipe: recipe.yml}\n"
COMMANDS = {
    "fetch": "recipes fetch hostile --output out/fetched",
    "check": "recipes check hostile",
    "show": "recipes show hostile/recipe.yml",
    "diff": "recipes diff hostile/recipe.yml other.yml",
    "card": "recipes card hostile",
    "gallery": "recipes gallery hostile --output out/gallery.html",
    "plan": "plan hostile/recipe.yml",
    "fetch ORG/MODEL": "recipes fetch org/model --output out/fetched",
    "run": "run hostile/pipeline.yml --dry-run",
    "reproduce": "recipes reproduce hostile --set BASE=base --output out/reproduction",
    "mix": "mix hostile/mixture.yml",
    "report": "report hostile/recipe.yml --output out/report.html",
}
TOUCH = "touch executed"
SECRETS = {
    "hf_" + "aB3dE5gH7jK9mN1pQ3rS5tU7vW9xY1zA2c": "a token",
    "sk-" + "proj-aB3dE5gH7jK9mN1pQ3rS5tU7vW9xY1zA2cD4": "a key",
}


@dataclass
class Case:
    """One kind of attack.

    `files`: path in the folder `hostile` -> content; `build` makes what is no plain file. `says`: for each command a
    regular expression that its output must match. `passes`: commands that may end with status 0.
    """

    attack: str
    answer: str
    says: dict
    files: dict = field(default_factory=dict)
    build: Callable = lambda folder: None
    server: Callable | None = None
    passes: tuple = ()


def laughs(levels=9):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


def yaml_case(attack, answer, text, says, *, recipe=RECIPE):
    """A YAML text in a recipe, a pipeline and a mixture, met by every command that reads one."""
    files = {"recipe.yml": recipe + text, "pipeline.yml": PIPELINE + text, "mixture.yml": "output: out/mixed\n" + text}
    told = dict.fromkeys(COMMANDS, says) | {"gallery": "recipe.yml.{0,99}(not valid YAML|expected at most)"}
    del told["fetch ORG/MODEL"], told["reproduce"], told["card"]
    return Case(attack, answer, told, files, passes=("gallery",))


def bundle(folder, change=lambda manifest: None, recipe=RECIPE):
    """A good bundle in the folder `hostile`, whose manifest is then changed."""
    stages = [BundleStage(name="sft", kind="recipe", file="recipes/sft.yml")]
    variables = {"BASE": Variable(meaning="the base", example="base")}
    folder.rmdir()
    files = {"recipes/sft.yml": recipe.replace("org/base", "${BASE}").encode(), "README.md": b"# card\n"}
    write_bundle(folder, files, name="sft", stages=stages, variables=variables)
    manifest = json.loads((folder / "solar_bundle.json").read_text())
    change(manifest)
    (folder / "solar_bundle.json").write_text(json.dumps(manifest))


def listing(path, content=b"a: 1\n"):
    """A bundle that lists another file, which is there."""

    def build(folder):
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        bundle(folder, lambda manifest: manifest["files"].update({path: entry}))
        target = Path(os.path.normpath(folder / path))
        if not target.exists() and not path.startswith("/"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    return build


def link_in_bundle(folder):
    bundle(folder)
    (folder / "recipes/sft.yml").unlink()
    (folder / "recipes/sft.yml").symlink_to(folder.parent / "private.yml")


def links(folder):
    (folder / "good.yml").write_text(RECIPE)
    (folder / "link.yml").symlink_to(folder.parent / "private.yml")
    (folder / "folder").symlink_to(folder.parent.parent)
    (folder / "loop.yml").symlink_to(folder / "loop.yml")
    os.mkfifo(folder / "pipe.yml")


NAMES = ["\x1b[31mred.yml", "\u202egnp.yml", "a\nb.yml", "\x07\x9b2J.yml", "a`$(touch executed)`.yml", "-rf.yml"]


def names(folder):
    for number, name in enumerate(NAMES):
        (folder / name).write_text(RECIPE + f"sequence_len: {number + 8}\n")


WILD = r'"a\0\e[31m\u202e\x9b\uD800~b"'
SCRIPT = "<script>document.title='executed'</script><img src=x onerror=alert(1)>\" onload='x' javascript:alert(1)"
HTML = {
    "recipe.yml": f"# {SCRIPT}\n# needs: {SCRIPT}\n"
    + RECIPE.replace("org/base", json.dumps(SCRIPT))
    + "rl: <b>dpo</b>\n",
    "README.md": f"# {SCRIPT}\n```yaml\n{RECIPE}# {SCRIPT}\n```\n",
    "gallery.json": json.dumps(
        {
            "format": 1,
            "recipes": {
                "recipe.yml": {"status": "run", "machine": SCRIPT, "note": SCRIPT, "results": {SCRIPT: SCRIPT}}
            },
        }
    ),
}


def secrets_in_odd_places():
    one, two = SECRETS
    half = len(one) // 2
    return {
        "comment.yml": RECIPE + f"# login: {one}\n",
        "key.yml": RECIPE + f"{one}: 1\n",
        "anchor.yml": RECIPE + f"wandb_name: &{one} x\n",
        "folded.yml": RECIPE + f'hub_model_id: "{one[:half]}\\\n  {one[half:]}"\n',
        "url.yml": RECIPE + "wandb_entity: https://me:s3cr3tpassword@example.com/x\n",
        "keys.yml": RECIPE + f"env: {{OPENAI_API_KEY: {two}}}\n",
        "unknown.yml": RECIPE + "hub_token: aVerySecretValue123\n",
        "pipeline.yml": PIPELINE.replace(
            "accelerate", f"WANDB_API_KEY={'0123456789abcdef' * 2 + '01234567'} accelerate"
        ),
        "recipe.yml": RECIPE,
    }


def answers(method, path, times=1000, **how):
    """A Hub that misbehaves; see `stand_in_hub.Fault`."""
    return lambda hub: hub.misbehave(method, path, times=times, **how)


def server_case(attack, answer, says, server, passes=()):
    return Case(f"a server that {attack}", answer, {"fetch ORG/MODEL": says}, server=server, passes=passes)


def outputs(place):
    return {
        "recipe.yml": RECIPE.replace("out/trained", place),
        "pipeline.yml": PIPELINE,
    }


CASES = [
    yaml_case(
        "YAML aliases: ten lines that stand for 3 billion values",
        "an error: at most 100,000 values, counted as aliases expand them",
        laughs(),
        "with aliases expanded",
    ),
    yaml_case(
        "YAML merge keys that copy a large map thousands of times",
        "the same error",
        "m: &m {" + ", ".join(f"k{i}: 1" for i in range(2000)) + "}\nb: {<<: [" + "*m, " * 2000 + "]}\n",
        "with aliases expanded",
    ),
    yaml_case("a YAML alias inside its own value", "an error", "loop: &a [*a]\n", "inside the value it refers to"),
    yaml_case(
        "YAML nested thousands of levels deep", "an error: at most 100 levels", "x: " + "[" * 5000, "100 levels deep"
    ),
    yaml_case(
        "a YAML number to the base 60, or with a million digits",
        "an error: at most 400 characters",
        "x: 1" + ":1" * 300_000,
        "a number of [0-9,]+ characters",
    ),
    yaml_case(
        "a YAML file of more than a million characters",
        "an error, or passed over; it is not downloaded",
        "x: '" + "y" * 1_000_000 + "'\n",
        "1,000,0|too large",
    ),
    yaml_case(
        "YAML tags that run a command, build an object or import a module",
        "an error: only plain values are read",
        f"x: !!python/object/apply:os.system ['{TOUCH}']\n",
        "could not determine a constructor",
    ),
    Case(
        "a `mergekit_config.yml` of a merged model that is a YAML bomb",
        "an error; the card is not written",
        dict.fromkeys(("fetch", "check", "card"), "with aliases expanded"),
        {"mergekit_config.yml": laughs(), "config.json": '{"model_type": "llama"}', "model.safetensors": ""},
    ),
    Case(
        "a key that is set twice: `output_dir: out` on top, `output_dir: /` far below",
        "shown, with the line of the second",
        {"fetch": r"set twice: output_dir \(line 57\)", "check": r"output_dir \(line 57\): set twice"},
        {"recipe.yml": RECIPE + "\n" * 50 + "output_dir: /\n"},
        passes=("fetch",),
    ),
    Case(
        "a card with a thousand code blocks, or one that never ends",
        "the first 50 YAML blocks are read, in linear time",
        {"fetch": "1,000 YAML blocks; only the first 50 were read"},
        {
            "README.md": "".join(f"```yaml\n{RECIPE}max_steps: {n}\n```\n" for n in range(1000)),
            "a/README.md": "<details><summary>See axolotl config\n" * 9000 + "```yaml\n" * 60_000,
            "b/README.md": "`" * 400_000 + "\n" + "---\n" * 100_000,
        },
        passes=("fetch",),
    ),
    *(
        Case(
            "`output_dir` that is `/`, `~`, `..` or `.`",
            "an error: it holds the working directory or the home directory",
            {"run": "holds the (working|home) directory", "check": "output_dir .* holds the (working|home) directory"},
            outputs(place),
        )
        for place in ("/", "'~'", "..", ".")
    ),
    *(
        Case(
            f"a bundle that lists {what}",
            "an error before any file is written",
            dict.fromkeys(("fetch", "check", "reproduce"), "is not the path of a file|a name that"),
            build=listing(path),
        )
        for what, path in (
            ("`../outside.yml`", "../outside.yml"),
            ("`a/../../outside.yml`", "a/../../outside.yml"),
            ("`/etc/passwd`", "/etc/passwd"),
            ("`C:\\\\outside.yml` or `..\\\\outside.yml`", "..\\outside.yml"),
            ("a name with a terminal's control characters", "recipes/\x1b[31m.yml"),
        )
    ),
    Case(
        "a bundle in which a recipe is a link to a private file",
        "an error; the file is not read",
        {"fetch": "recipes/sft.yml: missing", "check": "sft.yml: a link", "reproduce": "sft.yml: a link"},
        build=link_in_bundle,
    ),
    Case(
        "a bundle whose files differ from the listed hashes",
        "an error",
        dict.fromkeys(("fetch", "check", "reproduce"), "was changed"),
        build=lambda folder: (bundle(folder), (folder / "recipes/sft.yml").write_text(RECIPE + "rl: dpo\n")),
    ),
    Case(
        "a bundle whose recipe names `plugins` of others",
        "`reproduce` starts nothing without `--trust-code`",
        {"check": "evil", "reproduce": "--trust-code"},
        build=lambda folder: bundle(folder, recipe="plugins: [evil.Plugin]\n" + RECIPE),
        passes=("check",),
    ),
    Case(
        "a bundle whose recipe writes to `/`",
        "an error",
        {"check": "holds the working directory"},
        build=lambda folder: bundle(folder, recipe=RECIPE.replace("out/trained", "/")),
    ),
    Case(
        "links out of a folder, link loops and named pipes",
        "passed over; they are not opened",
        {"fetch": "a link out of the folder", "check": "", "gallery": ""},
        build=links,
        passes=("fetch", "check", "gallery"),
    ),
    Case(
        "file names with control characters, bidirectional marks or shell commands",
        "control characters are shown as �, and such a file is not written; no name reaches a shell",
        {"fetch": "a name that not every system can write", "check": "", "gallery": ""},
        build=names,
        passes=("fetch", "check", "gallery"),
    ),
    Case(
        "values with control characters, NUL, terminal escapes and halves of UTF-16 pairs",
        "an error or a message; shown with � in their place",
        {
            "fetch": "",
            "check": "",
            "gallery": "",
            "plan": "base_model",
            "run": "",
            "report": "",
            "show": "",
            "diff": "",
        },
        {
            "recipe.yml": "solar: {init: {strategy: dus, drop_layers: 2}}\n"
            + RECIPE.replace("org/base", WILD).replace("org/data", WILD).replace("out/trained", WILD),
            "pipeline.yml": PIPELINE.replace("out/runs", WILD)
            + f"- {{name: merge, command: {WILD}, outputs: [{WILD}]}}\n",
        },
        passes=("fetch", "check", "gallery", "run", "show", "diff"),
    ),
    Case(
        "HTML and scripts in names, comments, cards and results",
        "text on every page; the gallery's content policy allows only its own script",
        {"fetch": "", "check": "", "gallery": "", "show": "", "diff": ""},
        HTML,
        passes=("fetch", "check", "gallery", "show", "diff"),
    ),
    Case(
        "tokens and keys in comments, keys, anchors, folded strings, URLs and commands",
        "`check` fails and names file and place, never the secret",
        {"check": "|".join(secrets_in_odd_places())},
        secrets_in_odd_places(),
    ),
    Case(
        "`plugins`, dataset types, DeepSpeed files and `trust_remote_code` that name third-party code",
        "`check` and `show` list them; none is imported",
        {
            "fetch": "recipe",
            "check": "evil.*trust_remote_code|trust_remote_code.*evil",
            "gallery": "recipe.yml",
            "plan": "nothing to plan",
            "show": "evil",
            "diff": "evil",
        },
        {
            "recipe.yml": "plugins: [evil.Plugin]\ntrust_remote_code: true\ndeepspeed: evil.json\n"
            + RECIPE.replace("type: alpaca", "type: evil.strategy"),
            "evil.py": f"import os\nos.system('{TOUCH}')\n",
        },
        passes=("fetch", "check", "gallery", "show", "diff"),
    ),
    Case(
        "a pipeline with commands, and shell characters in names",
        "no shell ever sees them; only `solar run` without `--dry-run` starts what a pipeline names",
        {"fetch": "pipeline", "check": "", "run": "would run", "gallery": ""},
        {
            "pipeline.yml": PIPELINE
            + f"- {{name: x, command: 'sh -c \"{TOUCH}\"', outputs: ['out/$({TOUCH})'], launch: 'env `{TOUCH}`'}}\n",
            "recipe.yml": RECIPE.replace("out/trained", f"out/;{TOUCH};"),
        },
        passes=("fetch", "check", "run", "gallery"),
    ),
    server_case(
        "lists `../x.yml`, `/x.yml`, `C:/x.yml`, `NUL.yml` or two names that differ in case",
        "passed over; one of the two is written",
        "(?s)not the path of a file.*every system.*the same name",
        lambda hub: hub.repos["model", "org/model"].commit(
            {
                **dict.fromkeys(["../x.yml", "/x.yml", "C:/x.yml", "a/../../x.yml", "b\\x.yml", "NUL.yml"], RECIPE),
                "A.yml": RECIPE + "seed: 2\n",
                "a.yml": RECIPE + "seed: 3\n",
            }
        ),
        passes=("fetch ORG/MODEL",),
    ),
    *(
        server_case(
            "sends an ETag or a commit that is a path", "an error", says, answers("HEAD", "/resolve/", change=how)
        )
        for how, says in (
            (headers(ETag='"../../../../../etag"'), "ETag"),
            (headers(X_Linked_Etag='"/absolute"'), "ETag"),
            (headers(X_Repo_Commit="../../../commit"), "not a hash"),
        )
    ),
    server_case(
        "sends more bytes than it listed, or other ones",
        "an error",
        "not the file that the listing describes|size",
        answers("GET", "/resolve/", change=lambda status, old, body: (status, old, body[:-2] + b"9\n")),
    ),
    server_case(
        "lists a file of 9 GB as a recipe",
        "passed over; it is not downloaded",
        "too large for a recipe",
        answers(
            "GET", "/tree/", change=lambda s, h, body: (s, {}, re.sub(b'"size": [0-9]+', b'"size": 9000000000', body))
        ),
    ),
    server_case(
        "compresses an answer a thousandfold",
        "an error",
        "compressed",
        answers("GET", "/tree/", change=headers(Content_Encoding="gzip")),
    ),
    server_case(
        "sends endless pages or redirects",
        "an error after 60 requests",
        "requests were needed",
        lambda hub: answers(
            "GET", "/tree/", change=headers(Link=f'<{hub.url}/api/models/org/model/tree/main>; rel="next"')
        )(hub),
    ),
    server_case(
        "sends a byte at a time",
        "an error after 30 seconds",
        "bytes came in",
        answers("GET", "/tree/", seconds_per_byte=0.05),
    ),
    server_case(
        "asks to wait for an hour",
        "an error",
        "asked to wait 3,600 s",
        answers("GET", "/tree/", status=429, headers={"Retry-After": "3600"}),
    ),
    server_case(
        "puts a terminal's control characters into its messages",
        "shown with � in their place",
        "418",
        answers("GET", "/api/", status=418, headers={"X-Error-Message": "\x1b[31mred\x9b"}),
    ),
]
IDS = [f"{number}-{re.sub('[^a-z0-9]+', '-', case.attack.lower())[:40]}" for number, case in enumerate(CASES)]


def state(top, *left_out):
    """Every file, link and folder below a folder, with its content."""
    found = {}
    for path in sorted(top.rglob("*")):
        if any(path == one or path.is_relative_to(one) for one in left_out):
            continue
        if path.is_symlink():
            found[path] = os.readlink(path)
        else:
            found[path] = path.read_bytes() if path.is_file() else path.stat().st_mode
    return found


class Page(html.parser.HTMLParser):
    """The elements of a page with what a browser would run."""

    def __init__(self, text):
        super().__init__()
        self.active = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.active += [f"{tag} {key}={value}" for key, value in attrs if key.startswith("on")]
        self.active += [f"{tag} {v}" for k, v in attrs if k in ("src", "href") and not str(v).startswith("data:image/")]
        self.active += [tag] if tag in ("script", "iframe", "object", "embed", "base", "form") else []


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory with the folder `hostile`, and a private file next to it."""
    folder = tmp_path / "work"
    (folder / "hostile").mkdir(parents=True)
    (folder / "private.yml").write_text("private: this-is-private\nbase_model: x\n")
    (folder / "other.yml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    # Each call would import Axolotl for ten seconds; `test_what_a_recipe_names_is_not_imported` does.
    monkeypatch.setattr(schemas, "find_spec", lambda name: None)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_nothing_is_executed_nothing_escapes_and_nothing_hangs(case, work, monkeypatch, request):
    if case.server:
        hub = request.getfixturevalue("hub").use(monkeypatch, work / "out/home")
        hub.repo("org/model", {"sft.yml": RECIPE})
        case.server(hub)
        monkeypatch.setattr(hub_module, "SLOW_SECONDS", 0.3)
    case.build(work / "hostile")
    for name, text in case.files.items():
        path = work / "hostile" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    top, out = work.parent, work / "out"
    before = state(top)
    for name, pattern in case.says.items():
        start = time.monotonic()
        ended = CliRunner().invoke(solar, COMMANDS[name].split())
        said = ended.output
        pages = "".join(page.read_text() for page in out.glob("*.html"))
        assert time.monotonic() - start < MAX_SECONDS, name
        assert isinstance(ended.exception, SystemExit | None), (name, ended.exc_info)
        assert re.search(pattern, " ".join(f"{said} {pages}".split())), (name, said)
        assert ended.exit_code in ((0, 1) if name in case.passes else (1, 2)), (name, said)
        assert all(c.isprintable() or c == "\n" for c in said), (name, said)
        assert "this-is-private" not in said, name
        assert not [secret for secret in SECRETS if secret in said], name
        assert len(said) < 100_000, name
        assert state(top, out) == before, name
    shutil.rmtree(out / "home", ignore_errors=True)  # The Hub cache has links inside itself.
    for path in out.rglob("*"):
        assert path.resolve().is_relative_to(out), path
        assert not path.is_symlink(), path
        assert path.name.isprintable(), path
        assert b"this-is-private" not in (path.read_bytes() if path.is_file() else b""), path
    for page in out.rglob("*.html"):
        scripts = [one for one in Page(page.read_text()).active if one not in ("script", "form")]
        assert scripts == [], page


def test_every_secret_is_found(work):
    for name, text in secrets_in_odd_places().items():
        (work / "hostile" / name).write_text(text)
    ended = CliRunner().invoke(solar, ["recipes", "check", "hostile", "--json"])
    findings = json.loads(ended.output)["findings"]
    found = {one["file"] for one in findings if one["level"] == "error" and one["kind"] == "secrets"}
    assert found == secrets_in_odd_places().keys() - {"recipe.yml"}


@pytest.mark.slow
def test_what_a_recipe_names_is_not_imported(work, run):
    """With the real Axolotl, whose schema asks its plugins; the plugin could be imported from here."""
    (work / "evil.py").write_text(f"import os\nos.system('{TOUCH}')\nclass Plugin: pass\n")
    text = "plugins: [evil.Plugin]\ntrust_remote_code: true\ndeepspeed: evil.json\n" + RECIPE
    (work / "recipe.yml").write_text(text)
    ended = run("solar", "recipes", "check", "recipe.yml", cwd=work, env={"PYTHONPATH": str(work)}, timeout=200)
    assert "evil.Plugin" in ended.stdout, ended.stderr
    assert not (work / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        *(f"{BEGIN} -->" * 10_000, END + f"{BEGIN} -->" * 10_000, "---\n" * 250_000, "```\n" * 200_000),
        *("---\na: 1" + ":1" * 300_000 + "\n---\n", "---\n" + "[" * 100_000 + "\n---\n", "<details>" * 100_000),
        *("## " * 300_000, "\n## " * 200_000, " " * 1_000_000, BEGIN + "; metadata of the author: " + "a, " * 300_000),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_card_of_others_takes_no_quadratic_time(text):
    start = time.monotonic()
    card(Lineage(), text)
    card(Lineage(), "", text)
    assert time.monotonic() - start < MAX_SECONDS


def table():
    """The table of the page."""
    rows = dict.fromkeys(
        f"| {case.attack} | {', '.join(f'`{name}`' for name in case.says)} | {case.answer} |" for case in CASES
    )
    return "\n".join(["| attack | met by | what happens |", "|---|---|---|", *rows])


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(), f"python {Path(__file__).name} writes it"


if __name__ == "__main__":
    text = PAGE.read_text()
    start = text.index("| attack |")
    end = text.index("\n\n", start)
    PAGE.write_text(text[:start] + table() + text[end:])
