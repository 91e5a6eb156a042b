"""`solar run` with commands that take no time: what is skipped, refused and moved, and what a kill leaves behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import PROGRAMS

from solar_plugins.cli import solar

pytestmark = pytest.mark.slow

PYTHON = sys.executable
WRITE = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(exist_ok=True); (p / 'x').write_text(sys.argv[2])"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pipeline of three stages: one writes a, two copies it to b, three copies b to c."""
    monkeypatch.chdir(tmp_path)
    Path("write.py").write_text(WRITE)
    Path("copy.py").write_text(
        "import pathlib, sys; a, b = map(pathlib.Path, sys.argv[1:]); b.mkdir(exist_ok=True); "
        "(b / 'x').write_text((a / 'x').read_text() + b.name)"
    )
    stages(
        [
            ("one", "write.py a 1", [], ["a"]),
            ("two", "copy.py a b", ["a"], ["b"]),
            ("three", "copy.py b c", ["b"], ["c"]),
        ]
    )
    return tmp_path


def stages(all_stages):
    lines = [
        f"  - {{name: {name}, command: '{PYTHON} {command}', inputs: {inputs}, outputs: {outputs}}}\n"
        for name, command, inputs, outputs in all_stages
    ]
    Path("p.yml").write_text("records: records\nstages:\n" + "".join(lines))


def run(*options):
    result = CliRunner().invoke(solar, ["run", "p.yml", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def state():
    return {path.parent.name: path.read_text() for path in sorted(Path().glob("*/x"))}


def test_every_stage_once(folder):
    assert run()[0] == 0
    assert state() == {"a": "1", "b": "1b", "c": "1bc"}
    status, said = run()
    assert status == 0
    assert [line for line in said.splitlines() if line] == [
        f"[{n}/3] {name}: done" for n, name in enumerate(("one", "two", "three"), 1)
    ]


def test_a_changed_stage_is_refused_until_its_output_may_be_moved(folder):
    run()
    Path("p.yml").write_text(Path("p.yml").read_text().replace("write.py a 1", "write.py a 2"))
    status, said = run()
    assert status == 1
    for fact in ("stage one", "overwrite a", "--rerun one", "write.py a 2"):
        assert fact in said
    assert state() == {"a": "1", "b": "1b", "c": "1bc"}
    assert run("--rerun", "one", "--rerun", "two", "--rerun", "three")[0] == 0
    assert state() == {"a": "2", "a.before-1": "1", "b": "2b", "b.before-1": "1b", "c": "2bc", "c.before-1": "1bc"}


def test_an_output_that_is_gone_is_made_again_and_what_depends_on_it_stays_done(folder):
    run()
    Path("b/x").unlink()
    Path("b").rmdir()
    _, said = run()
    assert "[2/3] two: b is gone" in said
    assert "[3/3] three: done" in said


def test_files_beside_an_output_do_not_matter(folder):
    run()
    Path("a/card.md").write_text("more")
    assert run()[1].count(": done") == 3


def test_a_merge_gets_its_card_which_may_be_edited(folder):
    for name, licence in (("m", "mit"), ("n", "apache-2.0")):
        Path(name).mkdir()
        Path(name, "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    Path("merge.py").write_text(
        "import pathlib; p = pathlib.Path('merged'); p.mkdir(); (p / 'config.json').write_text('{}'); "
        "(p / 'mergekit_config.yml').write_text('models: [{model: m}, {model: n}]')"
    )
    stages([("merged", "merge.py", ["m", "n"], ["merged"])])
    status, said = run()
    assert status == 0
    for fact in ("merged/README.md", "mit", "apache-2.0"):
        assert fact in said
    card = Path("merged/README.md")
    assert "Merge with mergekit" in card.read_text()
    card.write_text(card.read_text() + "\nMore.\n")
    assert ": done" in run()[1]


def test_a_changed_input_is_found(folder):
    stages([("two", "copy.py a b", ["a"], ["b"])])
    Path("a").mkdir()
    Path("a/x").write_text("1")
    run()
    times = os.stat("a/x").st_mtime_ns
    Path("a/x").write_text("2")
    os.utime("a/x", ns=(times, times))
    assert "a has changed" in run()[1]


def test_from_and_only_leave_the_others_alone(folder):
    assert run("--only", "one")[0] == 0
    assert state() == {"a": "1"}
    assert run("--from", "three")[0] == 1, "its input does not exist"
    assert run("--from", "two")[0] == 0
    assert state()["c"] == "1bc"


@pytest.mark.parametrize("option", ["--from", "--only", "--rerun"])
def test_an_unknown_stage(folder, option):
    status, said = run(option, "fuor")
    assert status == 1
    assert "'fuor'" in said
    assert "one, two, three" in said


def test_a_dry_run_says_what_would_run_and_writes_nothing(folder):
    _, said = run("--dry-run")
    assert [line.split(" (")[0] for line in said.splitlines()] == [
        "[1/3] one: would run",
        "[2/3] two: would run after one",
        "[3/3] three: would run after two",
    ]
    assert state() == {}


def test_a_foreign_folder_is_not_overwritten(folder):
    Path("a").mkdir()
    Path("a/x").write_text("precious")
    status, said = run()
    assert status == 1
    assert "a exists" in said
    assert state() == {"a": "precious"}


def test_the_first_failure_ends_it_with_its_last_lines(folder):
    Path("fail.py").write_text("import sys; print('before'); print('why it failed', file=sys.stderr); sys.exit(3)")
    stages([("one", "fail.py", [], ["a"]), ("two", "copy.py a b", ["a"], ["b"])])
    status, said = run()
    assert status == 1
    for fact in ("stage one", "status 3", "why it failed", "records/one.log"):
        assert fact in said
    assert state() == {}
    stages([("one", "write.py a 1", [], ["a"]), ("two", "copy.py a b", ["a"], ["b"])])
    assert run()[0] == 0


def test_a_program_that_is_not_there(folder):
    Path("p.yml").write_text("records: records\nstages: [{name: one, command: no-such-program x, outputs: [a]}]\n")
    status, said = run()
    assert status == 1
    assert "no-such-program: cannot be started" in said


def test_an_output_that_was_not_written(folder):
    stages([("one", "write.py b 1", [], ["a"])])
    status, said = run()
    assert status == 1
    assert "did not write a" in said


def test_other_versions_are_noted_and_change_nothing(folder, monkeypatch):
    run()
    monkeypatch.setattr("solar_plugins.running.runner.package_versions", lambda: {"torch": "99"})
    assert "it is not run again for that" in run()[1]


SLOW = """
import pathlib, subprocess, sys, time
out = pathlib.Path(sys.argv[1])
out.mkdir(exist_ok=True)
# A worker in a session of its own, as torchrun starts them.
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
(out / "worker").write_text(str(worker.pid))
time.sleep(float(sys.argv[2]))
worker.kill()
(out / "x").write_text("1")
"""


def started(*options):
    return subprocess.Popen(
        [str(PROGRAMS / "solar"), "run", "p.yml", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path):
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)
    return path.read_text()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_of_a_stage_survives_solar_run(folder, number):
    """Even workers in a session of their own are ended, and the next run waits until they are."""
    Path("slow.py").write_text(SLOW)
    stages([("one", "slow.py a 100", [], ["a"])])
    process = started()
    worker = int(wait_for(folder / "a" / "worker"))
    process.send_signal(number)
    process.communicate()
    Path("p.yml").write_text(Path("p.yml").read_text().replace("slow.py a 100", "slow.py a 0.01"))
    status, said = run("--rerun", "one")
    assert status == 0, said
    assert not is_alive(worker)
    assert state()["a"] == "1"


@pytest.mark.slow
def test_a_second_run_of_a_pipeline_is_rejected(folder):
    Path("slow.py").write_text(SLOW)
    stages([("one", "slow.py a 100", [], ["a"])])
    process = started()
    wait_for(folder / "a" / "worker")
    status, said = run()
    assert status == 1
    assert "another `solar run`" in said
    process.terminate()
    process.communicate()


@pytest.mark.slow
def test_after_random_kills_the_next_run_has_the_same_result(folder):
    rng = random.Random(0)
    for _ in range(12):
        process = started()
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
    status, said = run()
    assert status == 0, said
    assert {name: text for name, text in state().items() if "." not in name} == {"a": "1", "b": "1b", "c": "1bc"}
