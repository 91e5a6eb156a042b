"""Runs of `solar maths` against the stand-in endpoint."""

import json
import os
import subprocess
from pathlib import Path

import yaml
from commands import PROGRAMS
from stand_in_endpoint import KEY, MODEL, write_problems

KINDS = {
    "rephrase": {"samples": 2},
    "rephrase_question": {},
    "rephrase_answer": {},
    "solve": {"votes": 3, "agree": 2},
    "self_verification": {},
    "fobar": {"samples": 2},
}
FILES = {"instructions.jsonl", "preferences.jsonl", "dropped.jsonl", "report.json", "report.md", "README.md"}


def write_recipe(folder, url, problems=10, *, kinds=KINDS, more=(), endpoint=None, **changes):
    """A recipe, its problems, and the variable with the key; returns the path."""
    write_problems(folder / "problems.jsonl", problems, more)
    recipe = {
        "seeds": {"path": str(folder / "problems.jsonl"), "license": "cc0-1.0"},
        "endpoint": {
            **{"base_url": url, "model": MODEL, "key_variable": "STAND_IN_KEY", "concurrency": 8, "timeout": 5},
            **(endpoint or {}),
        },
        "kinds": kinds,
        "output": str(folder / "out"),
        **changes,
    }
    path = folder / "maths.yml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe, key=KEY):
    """`solar maths` in a process of its own."""
    return subprocess.Popen(
        [str(PROGRAMS / "solar"), "maths", str(recipe)],
        env={**os.environ, "STAND_IN_KEY": key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(folder, name="instructions.jsonl"):
    return [json.loads(line) for line in (Path(folder) / "out" / name).read_text().splitlines()]


def contents(folder):
    return {path.name: path.read_bytes() for path in (Path(folder) / "out").iterdir()}
