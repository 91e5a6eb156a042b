"""A misbehaving endpoint: what may pass is retried, what will not is said in words."""

import threading
import time
from email.utils import formatdate

import pytest
from maths_runs import contents, rows, write_recipe
from stand_in_endpoint import KEY, MODEL, StandInEndpoint, stand_in_endpoint

from solar_plugins.endpoints import client as endpoint_module
from solar_plugins.errors import EndpointError
from solar_plugins.maths.generate import make_maths

pytestmark = pytest.mark.slow

SOLVE = {"solve": {}}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("STAND_IN_KEY", KEY)
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)


def run(folder, fault, problems=12, **endpoint):
    """The report and the endpoint, which answered with faults."""
    with stand_in_endpoint(fault=fault) as stand_in:
        recipe = write_recipe(folder, stand_in.url, problems, kinds=SOLVE, endpoint=endpoint)
        report, _ = make_maths(recipe)
    return report, stand_in


@pytest.mark.parametrize("fault", ["500", "502", "503", "408", "429", "cut stream", "malformed", "html", "no choices"])
def test_passing_faults_are_retried(tmp_path, fault):
    report, stand_in = run(tmp_path, lambda number, *_: fault if number % 3 == 0 else None)
    assert report.accepted == 12
    assert stand_in.asked.total() > 12
    assert max(stand_in.answered.values()) == 1


def test_a_request_that_takes_too_long_is_sent_again(tmp_path):
    began = time.monotonic()
    report, stand_in = run(tmp_path, lambda number, *_: "hang" if number == 3 else None, timeout=0.5)
    assert report.accepted == 12
    assert stand_in.asked.total() == 13
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_for_all_requests(tmp_path, form):
    def limited(number, *_):
        return f"429 {'1' if form == 'seconds' else formatdate(time.time() + 2, usegmt=True)}" if number == 5 else None

    with stand_in_endpoint(latency=0.02, fault=limited) as stand_in:
        report, _ = make_maths(write_recipe(tmp_path, stand_in.url, 30, kinds=SOLVE, endpoint={"concurrency": 4}))
    assert report.accepted == 30
    gaps = [later - earlier for earlier, later in zip(stand_in.times, stand_in.times[1:], strict=False)]
    assert max(gaps) > 0.8
    assert sum(gap > 0.8 for gap in gaps) == 1


def test_a_request_that_always_fails_costs_one_row_and_is_sent_again_next_time(tmp_path):
    faults = {"Tom": "500"}

    def faulty(number, prompt, seed):
        return next((fault for name, fault in faults.items() if name in prompt), None) if number else None

    with stand_in_endpoint(fault=faulty) as stand_in:
        recipe = write_recipe(tmp_path, stand_in.url, 12, kinds=SOLVE, endpoint={"retries": 2, "concurrency": 1})
        report, _ = make_maths(recipe)
        failed = rows(tmp_path, "dropped.jsonl")
        assert {row["reason"] for row in failed} == {"request failed"}
        assert all("HTTP 500" in row["detail"] for row in failed)
        assert report.accepted == 12 - len(failed)
        faults.clear()
        assert make_maths(recipe)[0].accepted == 12


def test_a_rejected_request_is_not_repeated(tmp_path):
    report, stand_in = run(tmp_path, lambda number, prompt, seed: "400" if "Ada" in prompt else None)
    assert report.kinds["solve"].dropped == {"request failed": 2}
    assert max(stand_in.asked.values()) == 1


def test_a_server_that_restarts_is_waited_for(tmp_path):
    stand_in = StandInEndpoint(latency=0.02)
    recipe = write_recipe(tmp_path, stand_in.url, 60, kinds=SOLVE, endpoint={"concurrency": 4})

    def restart():
        while stand_in.answered.total() < 15:
            time.sleep(0.01)
        stand_in.stop()
        time.sleep(1.0)
        stand_in.start()

    threading.Thread(target=restart, daemon=True).start()
    report, _ = make_maths(recipe)
    stand_in.stop()
    assert report.accepted == 60


def test_another_address_takes_over(tmp_path):
    with stand_in_endpoint() as good, stand_in_endpoint() as gone:
        recipe = write_recipe(tmp_path, [good.url, gone.url], 20, kinds=SOLVE)
        gone.stop()
        report, _ = make_maths(recipe)
        assert report.accepted == 20
        gone.start()
        shared = tmp_path / "shared"
        shared.mkdir()
        make_maths(write_recipe(shared, [good.url, gone.url], 20, kinds=SOLVE))
    assert gone.asked.total() == 10
    assert contents(shared) == contents(tmp_path)


def stopped(folder, url, **endpoint):
    with pytest.raises(EndpointError) as error:
        make_maths(write_recipe(folder, url, kinds=SOLVE, endpoint=endpoint))
    assert KEY not in str(error.value)
    assert not (folder / "out").exists()
    return str(error.value)


def test_what_no_request_survives_is_said_after_one(tmp_path, monkeypatch):
    with stand_in_endpoint() as stand_in:
        message = stopped(tmp_path, stand_in.url, model="gpt-none")
        assert "endpoint.model" in message
        assert "'gpt-none'" in message
        assert MODEL in message
        message = stopped(tmp_path, stand_in.url.removesuffix("/v1"))
        assert "endpoint.base_url" in message
        assert "/v1" in message
        message = stopped(tmp_path, stand_in.url, key_variable=None)
        assert "no key was sent" in message
        monkeypatch.setenv("STAND_IN_KEY", "sk-wrong")
        message = stopped(tmp_path, stand_in.url)
        assert "STAND_IN_KEY was rejected" in message
        assert "sk-wrong" not in message
        monkeypatch.setenv("STAND_IN_KEY", "two\nlines")
        assert "STAND_IN_KEY" in stopped(tmp_path, stand_in.url)
        monkeypatch.delenv("STAND_IN_KEY")
        assert "STAND_IN_KEY is not set" in stopped(tmp_path, stand_in.url)
        assert stand_in.number == 0


def test_a_server_that_stays_away(tmp_path):
    with stand_in_endpoint() as stand_in:
        pass
    message = stopped(tmp_path, stand_in.url, patience=0.3)
    assert stand_in.url in message
    assert "connection failed" in message
    assert "run the command again" in message


@pytest.mark.parametrize("fault", ["html", "malformed", "echo key", "500"])
def test_an_endpoint_that_answers_nonsense(tmp_path, fault):
    with stand_in_endpoint(fault=lambda *_: fault) as stand_in:
        message = stopped(tmp_path, stand_in.url, retries=2)
        assert stand_in.number == 3
    assert "stored" in message


def test_requests_that_are_all_rejected_stop_the_run(tmp_path):
    with stand_in_endpoint(fault=lambda *_: "422") as stand_in:
        with pytest.raises(EndpointError, match=r"20 requests in a row failed.*422"):
            make_maths(write_recipe(tmp_path, stand_in.url, 100, kinds=SOLVE))
        assert 20 <= stand_in.number <= 20 + 8


def test_no_credit_left(tmp_path):
    with stand_in_endpoint(fault=lambda number, *_: "402" if number > 3 else None) as stand_in:
        assert "no credit" in stopped(tmp_path, stand_in.url)


def test_seeds_are_left_out_on_demand(tmp_path):
    report, stand_in = run(tmp_path, lambda *_: None, send_seed=False)
    assert {seed for _, seed in stand_in.asked} == {0}
    assert report.accepted == 12
