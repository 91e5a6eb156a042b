"""Pack what a GPU machine without a network needs into parts that can be copied one by one.

    python scripts/gpu_check/gpu_pack.py --megabytes 55
    # there, in the repository root, when all parts are there:
    cat runs/gpu/carried/part-* | tar -xJ && export PYTHONPATH=$PWD:$PWD/runs/gpu/site

The parts contain the small model and the data of `make gpu-check-data`, and the project's dependencies as installed
here, except those in `PREINSTALLED`: large packages that a machine with PyTorch has. Both machines must have the same
Python version (such as 3.12) and processor architecture.
"""

from __future__ import annotations

import argparse
import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def names_in(text: str) -> frozenset[str]:
    """The names in a text, separated by white space."""
    return frozenset(text.split())


PREINSTALLED = names_in(
    "torch triton numpy scipy pandas pyarrow scikit-learn sympy networkx numba llvmlite pillow matplotlib "
    "fonttools contourpy kiwisolver cycler cmake ninja grpcio tensorboard tensorboard-data-server lxml regex "
    "setuptools pip"
)
"""Dependencies that a machine with PyTorch already has."""
UNUSED = names_in(
    "oci botocore boto3 s3fs gcsfs adlfs ocifs openai gradio trackio lm-eval nltk mergekit deepspeed "
    "deepspeed-kernels xformers mlflow comet-ml art uvloop fastapi uvicorn gguf llama-index hypothesis"
)
"""Dependencies that no step imports: clouds, servers, evaluation, DeepSpeed."""
EXTRAS = frozenset({"axolotl", "report"})
"""The project's extras that the check uses."""
SITE = Path("runs/gpu/site")
FOLDERS = (Path("runs/smollm2/SmolLM2-135M"), Path("runs/gpu/data"))
PRESET = 6


class Parts(io.RawIOBase):
    """A file that is split into parts of equal size.

    Args:
        folder: Where the parts go.
        part_bytes: Size of each part except the last.
    """

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self.folder, self.part_bytes, self.written = folder, part_bytes, 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        rest = bytes(data)
        while rest:
            number, at = divmod(self.written, self.part_bytes)
            piece, rest = rest[: self.part_bytes - at], rest[self.part_bytes - at :]
            with (self.folder / f"part-{number:02}").open("ab") as file:
                file.write(piece)
            self.written += len(piece)
        return len(data)


def required(name: str, extras: frozenset[str] = frozenset(), known: set[tuple[str, str]] | None = None) -> set[str]:
    """The installed distributions that a distribution needs with its extras, including itself."""
    known = set() if known is None else known
    key = name.lower().replace("_", "-")
    if key in PREINSTALLED or key in UNUSED or key.startswith(("nvidia-", "cuda-")):
        return set()
    try:
        requirements = [Requirement(line) for line in distribution(name).requires or []]
    except PackageNotFoundError:
        return set()  # for another system
    found = {key}
    for extra in {"", *extras} - {extra for seen, extra in known if seen == key}:
        known.add((key, extra))
        for needed in requirements:
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                found |= required(needed.name, frozenset(needed.extras), known)
    return found


def package_files(names: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """The files of distributions, each with its path relative to site-packages."""
    for name in names:
        for file in distribution(name).files or []:
            path = Path(str(file.locate()))
            inside = not file.parts[0].startswith("..") and "__pycache__" not in file.parts
            if inside and path.is_file():
                yield path, Path(*file.parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=55, help="size of each part (55)")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu/carried"))
    options = parser.parse_args(arguments)
    for folder in FOLDERS:
        if not folder.is_dir():
            parser.exit(1, f"Error: {folder} is missing; run make gpu-check-data first\n")
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("part-*"):
        old.unlink()
    names = sorted(required("solar_plugins", EXTRAS))
    parts = Parts(options.folder, options.megabytes * 1_000_000)
    with (
        lzma.open(parts, "wb", preset=PRESET) as packed,
        tarfile.open(fileobj=packed, mode="w|", dereference=True) as archive,
    ):
        for path, place in package_files(names):
            archive.add(path, str(SITE / place))
        for folder in FOLDERS:
            archive.add(folder, str(folder))
    print(f"{len(names)} packages: {' '.join(names)}")
    print(f"{parts.written / 1e6:.0f} MB in {len(list(options.folder.glob('part-*')))} parts in {options.folder}")


if __name__ == "__main__":
    main()
