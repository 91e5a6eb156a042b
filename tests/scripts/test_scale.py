import pytest
from bench import REPOSITORY
from handover import HandOver, measure_hand_over, seconds_of_a_rank
from scale import BASES, Rates, memory_of, node_caches, page, shared_cache, stored

RATES = Rates(1e9, 9.0, 0.04, 0.01, 0.005, 2.0, 43e6, 2e3)
MISTRAL, LLAMA_70B, LLAMA_405B = BASES


def test_the_page_is_what_the_measured_figures_give():
    assert (REPOSITORY / "docs" / "scale.md").read_text() == page(*stored()), "run scripts/benchmarks/scale.py"


def test_the_bases_have_their_published_parameters():
    """mistralai/Mistral-7B-v0.1, meta-llama/Llama-3.1-70B and -405B, as counted on the hub; SOLAR's from solar.md."""
    assert MISTRAL.parameters(32) == 7_241_732_096
    assert LLAMA_70B.parameters(80) == 70_553_706_496
    assert LLAMA_405B.parameters(126) == 405_853_388_800
    assert (MISTRAL.depth, MISTRAL.parameters(48)) == (48, 10_731_524_096)


def test_a_shared_cache_by_hand():
    """21.46 GB: 2 x that at 2 GB/s to write; 128 nodes share 50 GB/s to read; 1024 ranks of 5 ms, and 2 s."""
    start = shared_cache(MISTRAL, 128, RATES)
    assert start.write_seconds == pytest.approx(21.463, rel=1e-4)
    assert start.load_seconds == pytest.approx(21.463 / (50 / 128), rel=1e-4)
    assert start.hand_over_seconds == pytest.approx(7.12)
    assert start.later_bytes == 128 * 2 * 10_731_524_096
    assert start.first_bytes == 130 * 2 * 10_731_524_096
    assert shared_cache(MISTRAL, 16, RATES).load_seconds == pytest.approx(21.463 / 2, rel=1e-4)


def test_own_caches_by_hand():
    """On one node 21.46 GB by two cores of 1 GB/s; on 128 the 14.48 GB of the base at 50/128 GB/s take longer."""
    assert node_caches(MISTRAL, 1, RATES).write_seconds == pytest.approx(21.463 / 2, rel=1e-4)
    start = node_caches(MISTRAL, 128, RATES)
    assert start.write_seconds == pytest.approx(14.4835 / (50 / 128), rel=1e-4)
    assert start.load_seconds == pytest.approx(21.463 / 3, rel=1e-4)
    assert (start.first_bytes, start.later_bytes) == (128 * 2 * 7_241_732_096, 0)
    assert start.hand_over_seconds == pytest.approx(2 + 8 * 0.005)


def test_more_gpus_divide_the_states_and_nothing_else():
    peak, fixed = memory_of(MISTRAL, 1024)
    assert peak - fixed == -(-16 * 10_731_524_096 // 1024)


def test_the_slope_of_the_hand_over():
    assert seconds_of_a_rank([HandOver(10, 0.1, 1.5), HandOver(20, 0.1, 2.5), HandOver(30, 0.1, 3.5)]) == pytest.approx(
        0.1
    )


@pytest.mark.slow
def test_waiting_processes_find_the_checkpoint(tmp_path):
    found = measure_hand_over(tmp_path, 3, 0.1)
    assert found.processes == 3
    assert 0 < found.seconds < 10
    assert len(list(tmp_path.glob("cache-*/upscaled-*"))) == 1
