"""Fixes what ``axolotl merge-lora`` gets wrong in the merged folder.

It merges shard by shard and copies every other file from ``base_model``: the tokenizer from before the training, and a
config with the old EOS token. The adapter's folder has the tokenizer that the rows were encoded with. `model_cards`
replaces the base's card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from solar_plugins.logs import logger
from solar_plugins.storage.atomic import write_file
from solar_plugins.storage.untrusted import read_json_object
from solar_plugins.upscaling.base_model import CONFIG

LOG = logger("merged_model")

GENERATION_CONFIG = "generation_config.json"

TOKEN_IDS = ("eos_token_id", "bos_token_id", "pad_token_id")

OLD_TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates"),
)
"""Tokenizer files of the base, besides the vocabulary files that the tokenizer's class lists. All are removed: a file
that the trained tokenizer does not overwrite would still be read, such as a template, or by llama.cpp a SentencePiece
model without the new tokens."""


def finish_merged_model(adapter: Path, merged: Path, *, save_jinja_files: bool, trust_remote_code: bool) -> None:
    """Give a merged model the tokenizer and the EOS token of its training.

    Args:
        adapter: The folder where Axolotl saved the adapter, with the tokenizer.
        merged: The merged model.
        save_jinja_files: Axolotl's ``tokenizer_save_jinja_files``.
        trust_remote_code: The recipe's.

    Raises:
        CheckpointError: A config of the merged model cannot be read.
        OSError: A file cannot be read or written.
    """
    if not (adapter / "tokenizer_config.json").is_file():
        LOG.warning(
            "%s: has no tokenizer_config.json, so the merged model in %s keeps the tokenizer and the EOS token of "
            "base_model. Copy the tokenizer files from the folder where Axolotl saved the adapter",
            adapter,
            merged,
        )
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=trust_remote_code)
    for name in {*OLD_TOKENIZER, *filter(None, tokenizer.vocab_files_names.values())}:
        _remove(merged / name)
    tokenizer.save_pretrained(merged, save_jinja_files=save_jinja_files)
    _align_token_ids(tokenizer, merged)
    LOG.info("%s: saved the tokenizer of the training; answers end with %r", merged, tokenizer.eos_token)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _align_token_ids(tokenizer: Any, merged: Path) -> None:
    """Write the tokenizer's special tokens into the configs, as transformers' trainer does in full training."""
    from transformers.trainer_utils import align_special_tokens

    config = read_json_object(merged / CONFIG)
    nested = config.get("text_config")
    text_config = nested if isinstance(nested, dict) else config
    has_generation_config = (merged / GENERATION_CONFIG).is_file()
    generation = read_json_object(merged / GENERATION_CONFIG) if has_generation_config else None
    ids = _ids(text_config)
    ids.get_text_config = lambda: ids
    aligned = SimpleNamespace(config=ids, generation_config=None if generation is None else _ids(generation))
    align_special_tokens(aligned, tokenizer)  # type: ignore[no-untyped-call]
    _update(aligned.config, text_config)
    for name in TOKEN_IDS:
        if name in config:
            config[name] = text_config.get(name)
    _write_json(merged / CONFIG, config)
    if generation is not None:
        _update(aligned.generation_config, generation)
        _write_json(merged / GENERATION_CONFIG, generation)


def _ids(config: Mapping[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: config.get(name) for name in TOKEN_IDS})


def _update(ids: SimpleNamespace, config: dict[str, Any]) -> None:
    config.update({name: getattr(ids, name) for name in TOKEN_IDS if getattr(ids, name) is not None})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
