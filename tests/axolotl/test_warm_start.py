"""A warm run behaves like a cold one: arguments, environment, streams, exit status and signals."""

import os
import select
import signal

import pytest
from commands import ended, run, started, warm

pytestmark = pytest.mark.slow


def test_arguments_environment_directory_and_streams_are_those_of_the_caller(tmp_path):
    code = "import os, sys; print(os.getcwd(), sys.argv, os.environ['COLOUR'], input()); print('bad', file=sys.stderr)"
    result = run(warm("python", "-c", code, "a", "b"), cwd=tmp_path, env={"COLOUR": "red"}, stdin="spoken")
    assert result.stdout == f"{tmp_path} ['-c', 'a', 'b'] red spoken\n"
    assert result.stderr == "bad\n"
    assert result.returncode == 0


def test_a_module_of_the_folder_and_of_the_python_path_is_found(tmp_path):
    for name, other in (("here", "elsewhere"), ("elsewhere", "sys")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(f"import sys, {other}; print(__name__, sys.argv[1:])")
    python_path = {"PYTHONPATH": str(tmp_path / "elsewhere")}
    result = run(warm("python", "-m", "here", 1), cwd=tmp_path / "here", env=python_path)
    assert result.stdout == "elsewhere ['1']\n__main__ ['1']\n", result.stderr


@pytest.mark.parametrize(
    ("code", "status", "last_line"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no"),
        ("raise KeyError('oven')", 1, "KeyError: 'oven'"),
        ("import sys; sys.excepthook = lambda *_: print('hooked', file=sys.stderr); 1 / 0", 1, "hooked"),
        ("import atexit, sys; atexit.register(print, 'late', file=sys.stderr)", 0, "late"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_it_exits_as_python_does(code, status, last_line):
    result = run(warm("python", "-c", code))
    assert result.returncode == status
    assert result.stderr.strip().rpartition("\n")[2] == last_line


def test_nothing_of_the_package_is_imported_in_advance():
    code = "import sys; print([name for name in sys.modules if name.startswith('solar_plugins')])"
    assert run(warm("python", "-c", code)).stdout == "[]\n"


def test_an_interrupt_reaches_it():
    code = "import time; print('in', flush=True); time.sleep(60)"
    process = started(warm("python", "-c", code))
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGINT)
    status, said = ended(process, 30)
    assert said.endswith("KeyboardInterrupt\n")
    assert status != 0


def test_it_is_killed_with_its_client():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = started(warm("python", "-c", code))
    child = os.pidfd_open(int(process.stdout.readline()))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    ready, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ready, "it still runs"


def test_a_variable_that_is_read_at_import_is_rejected():
    result = run(warm("python", "-c", "print('ran')"), env={"HF_HOME": "/elsewhere"})
    assert (result.returncode, result.stdout) == (96, "")
    assert "HF_HOME is read when Axolotl is imported" in result.stderr
