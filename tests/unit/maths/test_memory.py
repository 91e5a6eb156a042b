"""Memory does not grow with the rows. `scripts/benchmarks/maths_rate.py` measures how fast answers are asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
from maths_runs import write_recipe
from stand_in_endpoint import KEY

STAND_IN = Path(__file__).parents[2] / "stand_in_endpoint.py"


PEAK = """
import resource, sys
from pathlib import Path
from solar_plugins.maths.generate import make_maths
make_maths(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """The larger run has 8,000 more rows: 8 MB of problems, prompts and answers. Both fill all buffers."""
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    peaks = []
    for name, count in (("few", 9000), ("many", 17_000)):
        folder = tmp_path / name
        folder.mkdir()
        command = [sys.executable, str(STAND_IN)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as endpoint:
            recipe = write_recipe(folder, endpoint.stdout.readline().strip(), count, kinds={"solve": {}})
            done = subprocess.run([sys.executable, "-c", PEAK, recipe], capture_output=True, text=True, check=True)
            endpoint.stdin.close()
        peaks.append(int(done.stdout) * 1024)
    assert (tmp_path / "many" / "out" / "instructions.jsonl").stat().st_size > 7e6
    assert peaks[1] - peaks[0] < 4e6, peaks
