"""A process that imports Axolotl once and forks a child for each run, so that no run pays for the imports.

    python tests/warm_server.py LISTENER

LISTENER is the number of an open socket. `warm_client.py` hands over a run's arguments, environment, working directory
and standard streams. The child then behaves as a new interpreter does: exceptions, exit status, output and `atexit`
functions are Python's own, and it imports `solar_plugins` itself. A run is killed with its client; the server ends when
its standard input does.

Two things differ from a new interpreter. What is read at import (`READ_AT_IMPORT`) has the server's values, so a run
that changes one is refused. And the modules of `IMPORTED` come first. Hence some tests start cold; see `commands`.
"""

import atexit
import contextlib
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import NamedTuple

IMPORTED = [
    "axolotl.cli.main",
    "axolotl.cli.config",
    "trl.import_utils",
    "deepspeed",
    "wandb",
    "transformers.pipelines",
    "mergekit.scripts.run_yaml",
]
"""What every run imports before Axolotl patches TRL, accelerate and transformers, and libraries that it does not patch.

Nothing else: a trainer's module imported here would keep the unpatched functions that it took from other modules. With
`trl.trainer.dpo_trainer`, for instance, DPO under FSDP2 trains against a wrong reference model.
"""
READ_AT_IMPORT = ["HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS"]
REFUSED = 96
"""Exit status of a run that needs an interpreter of its own."""


class Run(NamedTuple):
    """What `warm_client.py` sends."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str


def receive(connection: socket.socket) -> Run:
    """The next run; the standard streams of this process are the client's afterwards."""
    line, streams, *_ = socket.recv_fds(connection, 1 << 16, 3)
    while not line.endswith(b"\n"):
        line += connection.recv(1 << 16)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return Run(**json.loads(line))


def keep(connection: socket.socket) -> Run:
    """Fork the run, and send its process id and its exit status. Returns in the run's process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run = receive(connection)
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job ignores it.
        return run
    ended = os.pidfd_open(child)
    connection.sendall(b"%d\n" % child)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:  # The client was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % status)
    os._exit(0)


def serve(listener: socket.socket) -> Run:
    """Wait for clients until standard input ends. Returns in each run's process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel reaps who has sent an exit status.
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return keep(connection)
        connection.close()


def become(run: Run, environment: dict[str, str], path: list[str]) -> None:
    """Do what ``python ARGUMENTS`` does; ``environment`` is what the imports added to it."""
    for name in READ_AT_IMPORT:
        if os.environ.get(name) != run.environment.get(name):
            print(f"{name} is read when Axolotl is imported: this run needs an interpreter of its own", file=sys.stderr)
            sys.exit(REFUSED)
    os.environ.clear()
    os.environ.update(environment | run.environment)
    os.chdir(run.folder)
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        import coverage

        coverage.process_startup()
    kind, *arguments = run.arguments
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.realpath(kind)))
    sys.path[:] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
    if kind == "-m":
        spec = importlib.util.find_spec(arguments[0])
        code, sys.argv = spec.loader.get_code(spec.name), [spec.origin, *arguments[1:]]
    elif kind == "-c":
        code, sys.argv = compile(arguments[0], "<string>", "exec"), ["-c", *arguments[1:]]
    else:
        code, sys.argv = compile(Path(kind).read_text(), kind, "exec"), run.arguments
    # Without a name or file, or the workers of `datasets` would import it once more, which takes each 10 s.
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(code, vars(sys.modules["__main__"]))
    except SystemExit as end:
        if end.code:
            raise
    # What Python does at its end, but for taking 7,000 modules apart, which takes half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    before, path = dict(os.environ), sys.path[1:]
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        for module in IMPORTED:
            importlib.import_module(module)
        added = {name: value for name, value in os.environ.items() if name not in before}
        gc.collect()
        gc.freeze()  # A collection in a child would copy every page of what it shares.
        run = serve(listener)
    become(run, added, path)


if __name__ == "__main__":
    main()
