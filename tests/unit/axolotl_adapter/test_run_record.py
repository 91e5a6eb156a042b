"""`row_hashes`: a row is the same row in whatever batch, and another one with another token, label or mask."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl

from solar_plugins.axolotl_adapter.run_record import STOP_AFTER, record_run, row_hashes
from solar_plugins.errors import ArgsError


def batch(*rows, length=None, side="right"):
    """A padded batch."""
    length = length or max(map(len, rows))

    def padded(values, filler):
        more = [filler] * (length - len(values))
        return values + more if side == "right" else more + values

    return {
        "input_ids": torch.tensor([padded(list(row), 0) for row in rows]),
        "labels": torch.tensor([padded([-100, *row[1:]], -100) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row), 0) for row in rows]),
        "weights": torch.ones(len(rows)),
        "names": ["a"] * len(rows),
    }


def test_padding_and_the_rest_of_the_batch_do_not_count():
    first, second = row_hashes(batch([1, 2, 3], [4, 5]))
    assert row_hashes(batch([4, 5])) == [second]
    assert row_hashes(batch([1, 2, 3], length=9, side="left")) == [first]
    assert first != second


def test_a_token_a_label_or_a_mask_makes_another_row():
    (before,) = row_hashes(batch([1, 2, 3]))
    for key, value in (("input_ids", 7), ("labels", -100), ("attention_mask", 0)):
        changed = batch([1, 2, 3])
        changed[key][0, 2] = value
        assert row_hashes(changed) != [before]


def test_other_kinds_of_batches():
    pairs = {
        f"{kind}_{name}": value for kind in ("chosen", "rejected") for name, value in batch([1, 2], [3, 4]).items()
    }
    assert len(set(row_hashes(pairs))) == 2
    assert row_hashes({"input_ids": torch.tensor([[1, 2]])}) != row_hashes({"input_ids": torch.tensor([[1, 3]])})
    assert row_hashes({}) == []


def test_an_invalid_number_of_steps_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(STOP_AFTER, "many")
    with pytest.raises(ArgsError, match="SOLAR_STOP_AFTER_STEPS='many'; expected a number"):
        record_run(None, str(tmp_path), [])


def test_a_fault_of_the_record_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    """The loss is one that cannot be a number, the facts cannot be found out, and the log cannot be written as JSON."""
    monkeypatch.setenv(STOP_AFTER, "2")
    callbacks = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(process_index=0),
        training_step=lambda model, inputs: torch.ones(3),
        add_callback=callbacks.append,
    )
    record_run(trainer, str(tmp_path), [])
    state, control = SimpleNamespace(global_step=0, max_steps=9, log_history=[object()]), TrainerControl()
    (callback,) = callbacks
    callback.on_train_begin(trainer.args, state, control)
    for state.global_step in (1, 2):
        assert not control.should_training_stop
        trainer.training_step(None, batch([1, 2]))
        callback.on_step_end(trainer.args, state, control)
    assert control.should_training_stop, "it still stops where it should"
    callback.on_train_end(trainer.args, state, control)
    warned = [record.message for record in caplog.records]
    assert len(warned) == 4
    assert all("the record of this run is not complete" in message for message in warned)
