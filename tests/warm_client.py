"""``python -I -S warm_client.py NAME ARGUMENTS``: ``python ARGUMENTS``, run by a child of `warm_server`.

A process of its own, so that whoever starts, waits for or kills it needs not know.
"""

import contextlib
import json
import os
import signal
import socket
import sys


def main() -> None:
    """Hand everything over; end as the run ends."""
    run = {"arguments": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"\0{sys.argv[1]}")
        message = json.dumps(run).encode() + b"\n"
        sent = socket.send_fds(connection, [message], [0, 1, 2])
        connection.sendall(message[sent:])
        for stream in (0, 1, 2):  # A pipe shall end with the run.
            os.close(stream)
        answers = connection.makefile()
        child = int(answers.readline() or 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(child, number))
        status = int(answers.readline() or 1)
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other handler.
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
