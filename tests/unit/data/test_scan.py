import json
import os
import signal

import pytest

from solar_plugins.data import row_checks
from solar_plugins.data.ngrams import NgramIndex, Place
from solar_plugins.data.row_checks import Reason, RowRules, Scanner, default_processes
from solar_plugins.data.row_files import Block
from solar_plugins.errors import DataError

INDEX = NgramIndex(2, [("bad words", Place("b", 1))])


def blocks():
    for at in range(40):
        texts = ["fine", "bad words"] * (40 - at)  # the first take longest, and come first all the same
        yield Block("f", at, [json.dumps({"text": text}).encode() for text in texts], 1)


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order_from_any_number_of_processes(processes):
    with Scanner(INDEX, processes) as scanner:
        found = list(scanner.results(blocks(), RowRules(("text",))))
    assert [block for block, _ in found] == list(blocks())
    for block, result in found:
        assert result.kept == bytes([1, 0]) * (len(block.lines) // 2)
        assert {one.reason for one in result.dropped} == {Reason.BENCHMARK_OVERLAP}


def test_few_blocks_are_read_ahead():
    read = []

    def counted():
        for block in blocks():
            read.append(block)
            yield block

    with Scanner(None, 2) as scanner:
        next(scanner.results(counted(), RowRules(("text",))))
    assert len(read) == 5


@pytest.mark.parametrize("processes", [1, 2])
def test_a_line_that_is_no_row_is_dropped_and_the_reading_goes_on(processes):
    damaged = Block("f", 7, [b'{"text": "x"}', b"{"], 1)
    with Scanner(None, processes) as scanner:
        results = list(scanner.results([damaged, *blocks()], RowRules(("text",))))
    assert len(results) == 1 + len(list(blocks()))
    [dropped] = results[0][1].dropped
    assert (dropped.row, dropped.reason) == (8, Reason.UNREADABLE)


def test_a_killed_process_is_an_error_and_no_endless_wait(monkeypatch):
    monkeypatch.setattr(row_checks, "_check", _killed)
    with Scanner(None, 2) as scanner, pytest.raises(DataError, match="was killed"):
        list(scanner.results(blocks(), RowRules(("text",))))


def _killed(block, rules):
    os.kill(os.getpid(), signal.SIGKILL)


def test_small_files_need_no_processes():
    assert default_processes(1000) == 1
    assert default_processes(10**10) == min(len(os.sched_getaffinity(0)), 8)
