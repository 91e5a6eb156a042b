"""The GPU check is a script with modules beside it; its tests import them by their plain names."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

# Imported by Axolotl in processes of its own; here they would only take eight seconds.
collect_ignore = ["gpu_metrics.py", "gpu_launch.py", "gpu_load_check.py"]
