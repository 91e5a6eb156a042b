"""Tokenizers, and the real rows of `llamafactory`'s source package, fetched as `make demo` fetches its articles."""

import importlib
import json
import os
import tarfile

import pytest

from solar_plugins.plugins.recipe_packs import recipe_directory


@pytest.fixture(scope="session")
def tokenizer(sentencepiece_tokenizer):
    """Mistral 7B's tokenizer of 32,000 pieces, which puts `<s>` before a text."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(sentencepiece_tokenizer)


@pytest.fixture(scope="session")
def plain_tokenizer(sentencepiece_tokenizer):
    """The same pieces as they come, without `<s>`."""
    from transformers import LlamaTokenizer

    return LlamaTokenizer.from_pretrained(sentencepiece_tokenizer, add_bos_token=False)


@pytest.fixture(scope="session")
def real_rows(tmp_path_factory):
    """The rows of a file of `llamafactory/data` by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(recipe_directory() / "smollm2")  # prepare.py imports a module next to it
        prepare = importlib.import_module("prepare")
    folder = tmp_path_factory.mktemp("llamafactory")
    try:
        archive = prepare.download(prepare.DATA_PACKAGE, folder, "--no-binary", prepare.DATA_PACKAGE.partition("=")[0])
    except Exception as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the real rows could not be fetched, so they were NOT tested: {error}")

    def read(name):
        with tarfile.open(archive) as tar:
            return json.load(tar.extractfile(f"llamafactory-0.9.5/data/{name}"))

    return read
