"""How close `solar maths` comes to the ideal rate of an endpoint that takes 1 s for each answer.

    .venv/bin/python scripts/benchmarks/maths_rate.py [--rounds 3]

The stand-in endpoint of the tests runs next to it; 64 requests at once make 64 answers per second ideal.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_tables import spread

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "unit" / "maths")]

from maths_runs import start, write_recipe  # noqa: E402

AT_ONCE, REQUESTS_EACH = 64, 16


def share_of_the_ideal_rate(folder: Path) -> float:
    """One run: answers per second divided by the ideal."""
    command = [sys.executable, str(TESTS / "stand_in_endpoint.py"), "--latency", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as endpoint:
        assert endpoint.stdin is not None
        assert endpoint.stdout is not None
        url = endpoint.stdout.readline().strip()
        options = {"kinds": {"solve": {}}, "endpoint": {"concurrency": AT_ONCE}}
        process = start(write_recipe(folder, url, AT_ONCE * REQUESTS_EACH, **options))
        _, said = process.communicate(timeout=120)
        endpoint.stdin.close()
    found = re.search(r"(\d+) requests answered in ([\d.]+) s", said)
    if process.returncode or found is None:
        raise RuntimeError(said)
    return int(found[1]) / float(found[2]) / AT_ONCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    shares = []
    for number in range(parser.parse_args().rounds):
        with tempfile.TemporaryDirectory() as folder:
            shares.append(share_of_the_ideal_rate(Path(folder)))
        print(f"round {number + 1}: {shares[-1]:.1%} of the ideal rate", flush=True)
    found = spread(100 * share for share in shares)
    print(f"{found} % of the ideal rate, {AT_ONCE} requests at once, {AT_ONCE * REQUESTS_EACH} answers")


if __name__ == "__main__":
    main()
