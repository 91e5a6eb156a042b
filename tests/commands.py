"""Where tests start processes: cold, as a user does, or warm, forked from a process that has Axolotl imported.

A training run of a tiny model takes 16 s of CPU time cold and 2 to 3 s warm. Cold are the tests of a launcher, of the
interpreter's exit, of `HF_HOME` and of the hash seed, and a few runs from start to end; the others are warm.
"""

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = Path(sys.executable).parent
STARTED = []


def cold(*command):
    """The command line of a program of the virtual environment."""
    program, *arguments = map(str, command)
    return [str(PROGRAMS / program) if (PROGRAMS / program).exists() else program, *arguments]


def warm(*command):
    """The same, with ``python`` or a script of Axolotl or mergekit run by the warm server."""
    program, *arguments = cold(*command)
    arguments = arguments if Path(program).name == "python" else [program, *arguments]
    return [sys.executable, "-I", "-S", str(HERE / "warm_client.py"), warm_server().name, *arguments]


class WarmServer:
    """A `warm_server` of this process, which ends with this process."""

    def __init__(self):
        self.name = f"warm-axolotl-{os.getpid()}"
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as this process
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{self.name}")  # Linux's abstract names leave no file.
            listener.listen()  # Early clients wait.
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "warm_server.py"), str(listener.fileno())],
                cwd=tempfile.gettempdir(),
                # Its children are measured one by one.
                env={key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_PROCESS")},
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.process.communicate)


@functools.cache
def _server():
    return WarmServer()


def warm_server():
    """This process's server; the first call starts it.

    Raises:
        RuntimeError: It has ended.
    """
    server = _server()
    if server.process.poll() is not None:
        server.log.seek(0)
        raise RuntimeError(f"the warm server has ended: {server.log.read()[-3000:]}")
    return server


def environment(**more):
    """This process's environment with the virtual environment's programs first."""
    return os.environ | {"PATH": f"{PROGRAMS}:{os.environ['PATH']}"} | more


def started(command, *, folder=None, env=None, output=subprocess.PIPE):
    """A process with its own process group, which `end_all` ends at the latest; its output is text."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**(env or {})),
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def ended(process, timeout=500):
    """Exit status of a started process, and its output since the last read; its process group has ended."""
    try:
        said, _ = process.communicate(timeout=timeout)
    finally:
        kill_group(process)
    return process.returncode, said


def kill_group(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_all():
    """Kill what a failed test left running."""
    while STARTED:
        kill_group(STARTED.pop())


def run(command, *, cwd=None, env=None, stdin=None, timeout=500):
    """Run a command line to its end; standard output and error are returned as text, separately."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(**(env or {})),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
