"""A process that compares final answers with math-verify: a JSON list [right, found] per line in, a verdict out.

It has a limit on time and memory, because a line such as ``9^{9^{9^9}}`` may take all of both.
"""

from __future__ import annotations

import json
import resource
import signal
import sys

SECONDS = 3
MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends us.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from math_verify import parse, verify

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            right, found = (parse(rf"\boxed{{{text}}}", parsing_timeout=SECONDS) for text in json.loads(line))
            verdict = int(bool(verify(right, found, timeout_seconds=SECONDS)))
        except Exception:  # math-verify and sympy may raise anything on what a model wrote; MemoryError is one.
            verdict = 2
        print(verdict, flush=True)


if __name__ == "__main__":
    main()
