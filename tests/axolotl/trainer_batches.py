"""Run by `test_trainer_tokens.py` in a process of its own: the batches of Axolotl's trainers for pairs.

    python trainer_batches.py RECIPE...

Prints a JSON line for each recipe: the token ids of every text that its trainer gets, each with a mask of the tokens
that it trains on. For DPO they come a second time, cut by TRL's collator at the length that the recipe's name ends with
(``dpo.40.yml``).
"""

import dataclasses
import json
import os
import sys
from pathlib import Path


def texts_of(batch):
    if "chosen_labels" in batch:  # TRL's older trainers: labels instead of a mask, one tensor for each answer
        for side in ("chosen", "rejected"):
            labels = [[label >= 0 for label in row] for row in batch[f"{side}_labels"].tolist()]
            yield from zip(batch[f"{side}_input_ids"], labels, batch[f"{side}_attention_mask"], strict=True)
    else:
        masks = [[bool(token) for token in row] for row in batch["completion_mask"].tolist()]
        yield from zip(batch["input_ids"], masks, batch["attention_mask"], strict=True)


def without_padding(batch):
    return [[ids[: mask.sum()].tolist(), trained[: mask.sum()]] for ids, trained, mask in texts_of(batch)]


def batches(path):
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import setup_model_and_trainer

    cfg = load_cfg(path.name)
    PluginManager.get_instance().load_datasets(cfg, preprocess=False)
    trainer = setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]
    found = {"whole": [text for batch in trainer.get_train_dataloader() for text in without_padding(batch)]}
    _, *length, _ = path.name.split(".")
    if length:
        collator = dataclasses.replace(trainer.data_collator, max_length=int(length[0]))
        rows = [row for row in trainer.train_dataset if len(row["prompt_ids"]) < int(length[0])]  # TRL's own filter
        found["cut"] = without_padding(collator(rows))
    return found


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Axolotl's log
    for path in map(Path, sys.argv[1:]):
        os.chdir(path.parent)
        print(json.dumps(batches(path)), file=out, flush=True)


if __name__ == "__main__":
    main()
