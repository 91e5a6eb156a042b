"""What a launcher says, and who speaks."""

import pytest

from solar_plugins.axolotl_adapter.launch import is_started_again, launch_of
from solar_plugins.logs import may_speak_while_waiting, speaks_for_node

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        (TORCHRUN, True),
        (TORCHRUN | {"WORLD_SIZE": "1"}, False),
        (TORCHRUN | {"MASTER_PORT": "x"}, False),
        (TORCHRUN | {"AXOLOTL_IS_PREPROCESS": "1"}, False),
        *((TORCHRUN.keys() - {name}, False) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
        ({}, False),
    ],
)
def test_only_a_whole_launch_counts(environment, launched):
    if isinstance(environment, set):
        environment = {name: TORCHRUN[name] for name in environment}
    assert (launch_of(environment) is not None) == launched


@pytest.mark.parametrize(
    ("local_rank", "speaks", "waits_aloud"), [("0", True, True), ("1", False, True), ("2", False, False)]
)
def test_who_speaks(monkeypatch, local_rank, speaks, waits_aloud):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert (speaks_for_node(), may_speak_while_waiting()) == (speaks, waits_aloud)


@pytest.mark.parametrize(
    ("count", "most", "again"),
    [("0", "1", True), ("1", "1", False), ("0", "0", False), ("", "3", False), (None, None, False)],
)
def test_whether_torchrun_starts_again(monkeypatch, count, most, again):
    for name, value in (("RESTART_COUNT", count), ("MAX_RESTARTS", most)):
        monkeypatch.delenv(f"TORCHELASTIC_{name}", raising=False)
        if value is not None:
            monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    assert is_started_again() == again
