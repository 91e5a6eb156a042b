"""What happens to a stage, by what is known of it."""

import pytest

from solar_plugins.errors import SolarError
from solar_plugins.running.record import StageRecord, read_record, verdict, write_record

CONTENT, INPUTS = {"learning_rate": 1e-4}, {"base": "b1"}
FILES = {"out": {"model": "m1", "config": "c1"}}
DONE = StageRecord("done", CONTENT, INPUTS, FILES)
WITH_CARD = StageRecord("done", CONTENT, INPUTS, {"out": FILES["out"] | {"README.md": "r1"}})
STARTED = StageRecord("started", CONTENT, INPUTS)
NOTHING = {"out": {}}


@pytest.mark.parametrize(
    ("record", "content", "inputs", "found", "action", "fact"),
    [
        (None, CONTENT, INPUTS, NOTHING, "start", "never run"),
        (None, CONTENT, INPUTS, FILES, "refuse", "out exists"),
        (DONE, CONTENT, INPUTS, FILES, "skip", "done"),
        (DONE, CONTENT, INPUTS, NOTHING, "start", "out is gone"),
        (DONE, CONTENT, INPUTS, {"out": {"model": "m1"}}, "refuse", "out/config"),
        (DONE, CONTENT, INPUTS, {"out": {"model": "m2", "config": "c1"}}, "refuse", "out/model"),
        (WITH_CARD, CONTENT, INPUTS, {"out": FILES["out"] | {"README.md": "edited"}}, "skip", "done"),
        (DONE, {"learning_rate": 2e-4}, INPUTS, FILES, "refuse", "learning_rate: 0.0001 is now 0.0002"),
        (DONE, {"learning_rate": 2e-4}, INPUTS, NOTHING, "start", "learning_rate"),
        (DONE, CONTENT | {"seed": 1}, INPUTS, FILES, "refuse", "seed: None is now 1"),
        (DONE, CONTENT, {"base": "b2"}, FILES, "refuse", "base has changed"),
        (DONE, CONTENT, {"base": "b1", "rows": "r"}, FILES, "refuse", "rows is a new input"),
        (DONE, CONTENT, {}, FILES, "refuse", "base is not an input any more"),
        (STARTED, CONTENT, INPUTS, FILES, "continue", "did not finish"),
        (STARTED, CONTENT, INPUTS, NOTHING, "start", "did not finish"),
        (STARTED, {}, INPUTS, FILES, "refuse", "learning_rate"),
    ],
)
def test_the_verdict(record, content, inputs, found, action, fact):
    said = verdict(record, content, inputs, found)
    assert said.action == action
    assert fact in said.reason


def test_a_record_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "records" / "one.json"
    assert read_record(path) is None
    write_record(path, DONE)
    assert read_record(path) == DONE


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2, "status": "done"}', '{"format": 1, "status": "x"}'])
def test_what_is_no_record_is_an_error_with_the_file(tmp_path, content):
    path = tmp_path / "one.json"
    path.write_text(content)
    with pytest.raises(SolarError, match=r"one\.json: "):
        read_record(path)
