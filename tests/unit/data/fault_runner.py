"""Builds a mixture or a prepared dataset many times in forked processes, each with one fault; prints JSON.

A program of its own, so that it forks fast: ``python fault_runner.py WHAT FAULT FOLDER``. Faults strike at the k-th
operation on a file, for every k (`faults.py`). Each attempt starts from an existing folder: the mixture of other
options, or a prepared dataset that lost its report.
"""

import collections
import errno
import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from faults import READING, WRITING, in_child, strike

from solar_plugins.data.mixture import make_mixture
from solar_plugins.data.prepared_datasets import TALLY_FILE, TrainingRecords, fingerprint, prepared_set
from solar_plugins.data.row_encoder import RowEncoder


class Mixture:
    """Two datasets; the existing folder has another seed."""

    ignored = frozenset()

    def __init__(self, folder):
        os.chdir(folder)
        with open("rows.jsonl", "w") as file:
            file.writelines(json.dumps({"text": f"row {i}"}) + "\n" for i in range(50))
        self.target = folder / "made" / "mix"
        self.write_recipe(seed=1)
        make_mixture(Path("mix.yml"), 1)
        self.write_recipe(seed=2)

    def write_recipe(self, seed):
        sets = {name: {"path": "rows.jsonl", "rows": 20, "seed": seed, "text_columns": "text"} for name in "ab"}
        Path("mix.yml").write_text(json.dumps({"output": "made/mix", "sets": sets}))

    def make(self):
        make_mixture(Path("mix.yml"), 1)

    def content(self):
        """Every file; the report without its duration."""
        files = {path.name: path.read_text() for path in sorted(self.target.iterdir())}
        return files | {"report.json": json.loads(files["report.json"]) | {"seconds": 0}}


class Prepared:
    """A dataset with one bad row; the existing folder lacks its report."""

    ignored = frozenset({"write"})  # Nearly all of them are pickle's and json's, into memory.

    def __init__(self, folder):
        from datasets import Dataset
        from transformers import PreTrainedTokenizerFast

        from solar_plugins.data.encoder import make_encoder
        from solar_plugins.data.formatters import sft_formatters

        self.dataset = Dataset.from_list(
            [{"instruction": f"u{n}", "output": f"a{n}" if n != 3 else ""} for n in range(20)]
        )
        encoder = make_encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer(), eos_token="</s>"), "t")
        self.records = TrainingRecords(RowEncoder(sft_formatters()["alpaca"], encoder, 64))
        self.directory = folder / "made"
        self.target = self.directory / fingerprint(self.dataset, self.records)
        self.make()
        (self.target / TALLY_FILE).unlink()

    def make(self):
        prepared_set(self.dataset, self.records, "here", self.directory, None)

    def content(self):
        from datasets import load_from_disk

        rows = load_from_disk(str(self.target))
        tally = self.target / TALLY_FILE
        return [rows["input_ids"][:], rows["labels"][:], tally.read_text() if tally.exists() else None]


def tokenizer():
    """One token per character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    made = Tokenizer(models.WordLevel({text: n for n, text in enumerate([*characters, "</s>"])}, unk_token=" "))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.add_special_tokens(["</s>"])
    return made


class Trial:
    """The folder before, the folder after a run without faults, and the outcomes of the attempts."""

    def __init__(self, subject, folder):
        self.subject, self.target, self.struck = subject, subject.target, folder / "struck"
        self.saved = folder / "saved"
        self.old = subject.content()
        shutil.copytree(self.target, self.saved, symlinks=True)
        subject.make()
        self.new = subject.content()
        assert self.new != self.old
        self.problems, self.outcomes = [], collections.Counter()

    def begin(self):
        shutil.rmtree(self.target.parent)
        shutil.copytree(self.saved, self.target)
        self.struck.unlink(missing_ok=True)

    def work(self, k, fault, names):
        def noted(name):
            self.struck.write_text(name)
            fault(name)

        strike(k, noted, names - self.subject.ignored)
        self.subject.make()

    def check(self, k):
        """The old content, the new or none; one more run gives the new and leaves nothing else."""
        found = self.subject.content() if self.target.exists() else None
        self.outcomes["none" if found is None else "new" if found == self.new else "old"] += 1
        if found not in (None, self.old, self.new):
            self.problems.append(f"{k}: something half stands there")
        self.subject.make()
        if self.subject.content() != self.new:
            self.problems.append(f"{k}: the next run made something else")
        rest = {path.name for path in self.target.parent.iterdir()} - {self.target.name}
        if rest - ({f".{self.target.name}.lock"} if found == self.new else set()):
            self.problems.append(f"{k}: left over: {sorted(rest)}")

    def kill(self, k):
        """SIGKILL before the k-th operation that changes something."""
        status, text = in_child(lambda: self.work(k, lambda name: os.kill(os.getpid(), signal.SIGKILL), WRITING))
        if status not in (0, -signal.SIGKILL):
            self.problems.append(f"{k}: {status} {text}")

    def fail(self, k):
        """The k-th operation fails. The error is a paragraph, nothing is left over, and the old content is not lost."""

        def fault(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        status, text = in_child(lambda: self.work(k, fault, WRITING | READING))
        if status not in (0, 3) or (status == 3 and "\n" in text):
            self.problems.append(f"{k}: {status} {text}")
        if status == 3 and list(self.target.parent.glob(".*partial-*")):
            self.problems.append(f"{k} {self.struck.read_text()}: a partial directory is left")

    def every(self, attempt):
        for k in itertools.count(1):
            self.begin()
            attempt(k)
            if not self.struck.exists():
                return k - 1
            self.check(k)
        return None


if __name__ == "__main__":
    what, fault, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    trial = Trial({"mixture": Mixture, "prepared": Prepared}[what](folder), folder)
    points = trial.every({"kill": trial.kill, "fail": trial.fail}[fault])
    print(json.dumps({"problems": trial.problems[:5], "points": points, "outcomes": trial.outcomes}))
