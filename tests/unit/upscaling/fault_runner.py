"""Runs the writer many times in forked processes, each with one fault, and prints what came out as JSON.

A program of its own, so that it forks fast: ``python fault_runner.py MODE FOLDER [WIDTH]``. Faults strike at the k-th
operation on a file, for every k (`faults.py`). A disk that shares blocks needs a WIDTH whose tensors have whole blocks.
"""

import collections
import errno
import itertools
import json
import logging
import os
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

from faults import READING, WRITING, content, in_child, strike, times

from solar_plugins.storage import atomic
from solar_plugins.upscaling import checkpoint
from solar_plugins.upscaling.base_model import find_base
from solar_plugins.upscaling.checkpoint import cache_name, ensure_checkpoint, is_finished
from solar_plugins.upscaling.layer_plan import LayerPlan, PlannedLayer
from solar_plugins.upscaling.weight_files import INDEX

PLAN = LayerPlan(2, (PlannedLayer(0), PlannedLayer(1), PlannedLayer(0, "identity"), PlannedLayer(1)))


def make_base(directory, layers=2, hidden=8, vocabulary=16):
    """A Llama-type base of random bytes in three shards, with an index, a tokenizer, a license and a card."""
    directory.mkdir(parents=True)
    config = {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": hidden}
    config |= {"vocab_size": vocabulary, "num_attention_heads": 1, "num_key_value_heads": 1, "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": [vocabulary, hidden], "lm_head": [vocabulary, hidden], "model.norm": [hidden]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        squares = [*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("up", "gate", "down"))]
        shapes |= {prefix + name: [hidden, hidden] for name in squares}
        shapes |= {prefix + name: [hidden] for name in ("input_layernorm", "post_attention_layernorm")}
    names, weight_map = sorted(shapes), {}
    for shard in range(3):
        filename, header, position = f"model-{shard + 1:05}-of-00003.safetensors", {}, 0
        for name in names[shard::3]:
            end = position + 2 * shapes[name][0] * (shapes[name] + [1])[1]
            header[f"{name}.weight"] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [position, end]}
            weight_map[f"{name}.weight"], position = filename, end
        text = json.dumps(header).encode()
        (directory / filename).write_bytes(struct.pack("<Q", len(text)) + text + os.urandom(position))
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in ("tokenizer.json", "LICENSE", "README.md"):
        (directory / name).write_text(name * 10)
    return directory


class Trial:
    """One base, what a run without faults makes of it, and a cache that is emptied between the attempts."""

    def __init__(self, folder, hidden=8):
        self.base = make_base(folder / "base", hidden=hidden)
        self.pristine = Path(shutil.copytree(self.base, folder / "pristine"))
        self.cache = folder / "cache"
        self.target = self.cache / cache_name(find_base(str(self.base)), PLAN)
        self.run()
        self.expected = content(self.target)
        self.before = (content(self.base), times(self.base))
        self.problems = []
        self.outcomes = collections.Counter()

    def run(self, at=None, fault=None, names=()):
        base = find_base(str(self.base))
        _ = base.identity
        if at:
            strike(at, fault, names)
        return ensure_checkpoint(base, PLAN, self.cache)

    def check(self, k, text):
        """After a fault: no partial output, the base is unchanged, and one more run repairs everything."""
        names = {path.name for path in self.cache.iterdir()} if self.cache.exists() else set()
        finished = self.target.name in names
        if finished and not (
            is_finished(self.target, find_base(str(self.base)), PLAN) and content(self.target) == self.expected
        ):
            self.problems.append(f"{k}: something looks finished and is not")
        if (content(self.base), times(self.base)) != self.before:
            self.problems.append(f"{k}: the base was touched")
        left = sorted(name for name in names if ".partial-" in name)
        self.outcomes["finished" if finished else "partial left" if left else "nothing left"] += 1
        if text and ("\n" in text or not text.startswith("/")):
            self.problems.append(f"{k}: no paragraph: {text}")
        try:
            self.run()
        except BaseException as error:
            self.problems.append(f"{k}: the next run failed: {error!r}")
            return
        if content(self.target) != self.expected:
            self.problems.append(f"{k}: the next run made other bytes")
        rest = {path.name for path in self.cache.iterdir()} - {self.target.name}
        if rest - ({f".{self.target.name}.lock"} if finished else set()):
            self.problems.append(f"{k}: left over after the repair: {sorted(rest)}")

    def every(self, attempt):
        """Call ``attempt(k)`` for k = 1, 2, ... until it says that there was no k-th operation."""
        for k in itertools.count(1):
            shutil.rmtree(self.cache, ignore_errors=True)
            status, text = attempt(k)
            if status == 0 and not text:
                reached = k - 1
                if content(self.target) != self.expected:
                    self.problems.append(f"{k}: other bytes")
                return reached
            self.check(k, text)
        return None

    def report(self, **more):
        return {"problems": self.problems[:5], "count": len(self.problems), "outcomes": self.outcomes, **more}


def kill(trial):
    """SIGKILL before each operation that changes something."""

    def attempt(k):
        status, text = in_child(lambda: trial.run(k, lambda name: os.kill(os.getpid(), signal.SIGKILL), WRITING))
        if status not in (0, -signal.SIGKILL):
            trial.problems.append(f"{k}: {status} {text}")
        return status, text

    return trial.report(points=trial.every(attempt))


def errors(trial):
    """Each operation fails once: writing with a full disk, then everything with an I/O error."""
    points, texts, ignored = {}, collections.Counter(), collections.Counter()
    for code, names in ((errno.ENOSPC, WRITING), (errno.EIO, WRITING | READING)):
        struck = Path(trial.cache.parent / "struck")

        def attempt(k, code=code, names=names, struck=struck):
            def fail(name):
                struck.write_text(name)
                raise OSError(code, os.strerror(code))

            struck.unlink(missing_ok=True)
            status, text = in_child(lambda: trial.run(k, fail, names))
            if status == 3:
                texts[os.strerror(code) if os.strerror(code) in text else text[:300]] += 1
            if status not in (0, 3):
                trial.problems.append(f"{k} {struck.read_text()}: {status} {text}")
            if status == 3 and trial.cache.exists() and list(trial.cache.glob(".*partial-*")):
                trial.problems.append(f"{k} {struck.read_text()}: a partial directory is left")
            swallowed = status == 0 and struck.exists()
            if swallowed:
                ignored[struck.read_text()] += 1
            return (status, text) if not swallowed else (None, "")

        points[os.strerror(code)] = trial.every(attempt)
    return trial.report(points=points, texts=texts, ignored=ignored)


def grow(path):
    with path.open("ab") as file:
        file.write(b"x")


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def replace(path):
    """Other bytes, but the name, the size and the time stay."""
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-1] + b"\xa5")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(path)


def without_marker(files):
    """The marker holds the base's identity, which may be another one without any harm."""
    return {name: value for name, value in files.items() if name != "solar_plan.json"}


def change(trial, kind, k):
    """What comes of a base that changes before the k-th operation; None if there is none."""
    shutil.rmtree(trial.cache, ignore_errors=True)
    shutil.rmtree(trial.base)
    shutil.copytree(trial.pristine, trial.base)
    struck = trial.cache.parent / "struck"
    struck.unlink(missing_ok=True)

    def fault(name):
        sys.setprofile(None)
        struck.touch()
        kind(sorted(trial.base.glob("*.safetensors"))[1])

    status, text = in_child(lambda: trial.run(k, fault, WRITING | READING))
    if not struck.exists():
        return None
    if status == 3 and ("the base changed while it was copied" in text or "truncated while" in text):
        if [path for path in trial.cache.iterdir() if path.is_dir()]:
            trial.problems.append(f"{kind.__name__} {k}: something is left")
        return "refused"
    if status != 0:
        trial.problems.append(f"{kind.__name__} {k}: {status} {text}")
    elif without_marker(content(trial.target)) != without_marker(trial.expected):
        trial.problems.append(f"{kind.__name__} {k}: other bytes were taken for the base's")
    return "too late to matter"


def changes(trial):
    """The base changes while it is copied, before each third operation, in each of four ways."""
    found = {}
    for kind in (grow, truncate, replace, os.utime):
        outcomes = itertools.takewhile(bool, (change(trial, kind, k) for k in itertools.count(1, 3)))
        found[kind.__name__] = [(outcome, len(list(group))) for outcome, group in itertools.groupby(outcomes)]
    return trial.report(found=found)


class Crowd:
    """Eight processes at once, in groups that see each other's locks; the first writer may be killed."""

    def __init__(self, trial, groups, die):
        self.trial, self.groups, self.die = trial, groups, die
        self.log = trial.cache.parent / "log"
        self.log.touch()

    def say(self, text):
        with self.log.open("a") as file:
            file.write(f"{text}\n")

    def lines(self, start):
        return [line for line in self.log.read_text().splitlines() if line.startswith(start)]

    def all_there(self):
        """Each group has a writer, and all the others wait."""
        return len(self.lines("writes ")) >= self.groups and len(self.lines("waiting for ")) >= 8 - self.groups

    def victim(self):
        return int(self.lines("writes ")[0].split()[1])

    def slow_fill(self, *arguments):
        directory = arguments[-1]
        self.say(f"writes {os.getpid()}")
        (directory / "begun").write_bytes(b"x" * 100_000)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (not self.all_there() or (self.die and self.victim() == os.getpid())):
            time.sleep(0.02)
        (directory / "begun").unlink()
        self.real_fill(*arguments)

    def write(self, *arguments):
        placed = self.real_write(*arguments)
        self.say(f"{'placed' if placed else 'second'} {os.getpid()}")
        return placed

    def member(self, group):
        logger = logging.getLogger("axolotl.solar_plugins")
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.FileHandler(self.log))
        atomic.FIRST_MESSAGE_SECONDS = 0.1
        self.real_fill, self.real_write = checkpoint._fill, atomic.write_directory
        checkpoint._fill, atomic.write_directory = self.slow_fill, self.write
        if group:  # Another node: other locks, another kernel's process numbers.
            real_lock = atomic.FileLock
            atomic.FileLock = lambda path, **options: real_lock(f"{path}.node{group}", **options)
            atomic._this_kernel = lambda: f"0000000{group}"
            atomic.socket.gethostname = lambda: f"node{group}"
        try:
            self.trial.run()
        except BaseException as error:
            self.say(f"error {error!r}")
            os._exit(4)
        os._exit(0)

    def statuses(self):
        shutil.rmtree(self.trial.cache)
        children = []
        for number in range(8):
            child = os.fork()
            if child == 0:
                self.member(number % self.groups)
            children.append(child)
        if self.die:
            while not self.all_there():
                time.sleep(0.02)
            os.kill(self.victim(), signal.SIGKILL)
        return sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)

    def report(self):
        statuses = self.statuses()
        if content(self.trial.target) != self.trial.expected:
            self.trial.problems.append("other bytes")
        return self.trial.report(
            statuses=statuses,
            placed=len(self.lines("placed ")),
            second=len(self.lines("second ")),
            waiting=self.lines("waiting for "),
            owners=[int(line.split()[1]) for line in self.lines("writes ")],
            errors=self.lines("error "),
            rest=sorted({path.name for path in self.trial.cache.iterdir()} - {self.trial.target.name}),
        )


if __name__ == "__main__":
    mode, folder, *width = sys.argv[1:]
    made = Trial(Path(folder), *map(int, width))
    modes = {"kill": kill, "errors": errors, "changes": changes}
    if mode in modes:
        result = modes[mode](made)
    else:
        _, groups, die = mode.split("-")
        result = Crowd(made, int(groups), die == "die").report()
    print(json.dumps(result))
