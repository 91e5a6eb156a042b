"""The benchmarks are scripts beside each other; their tests import them by their plain names."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
