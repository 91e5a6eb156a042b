import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solar_plugins.errors import CheckpointError
from solar_plugins.upscaling.layer_plan import LayerPlan
from solar_plugins.upscaling.marker import FORMAT_VERSION, MARKER, Marker, read_marker

PLAN = LayerPlan.from_sources(4, [0, 1, 2, 1, 2, 3])
GOOD = Marker("base", None, "directory:1234", PLAN, {"config.json": 10, "model.safetensors": 20, "a/b.jinja": 3})


def write(directory, content):
    (directory / MARKER).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_a_marker_is_read_as_it_was_written(tmp_path):
    assert read_marker(write(tmp_path, GOOD.to_dict())) == GOOD
    hub = GOOD._replace(base_name="someone/tiny", base_revision="a" * 40, hub_was_asked=False)
    assert read_marker(write(tmp_path, hub.to_dict())) == hub


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 0}, "format_version is 0, expected 2; .* another version of solar_plugins"),
        ({"format_version": None}, "format_version is None"),
        ({"base": {}}, "damaged .KeyError: 'name'"),
        ({"base": None}, "damaged .TypeError"),
        ({"base": {"name": "x", "revision": 3, "identity": "y"}}, "damaged .ValueError: a value of the wrong type"),
        ({"plan": {}}, "damaged .PlanError"),
        ({"plan": {"base_layers": 2, "ranges": [{"start": 0.0, "end": 1.0}]}}, "damaged .PlanError"),
        ({"files": {}}, "damaged .ValueError: a value of the wrong type"),
        ({"files": []}, "damaged"),
        ({"hub_was_asked": 1}, "damaged"),
        ({"files": {"config.json": -1}}, "damaged"),
        ({"files": {"config.json": True}}, "damaged"),
        ({"files": {"config.json": 1, "../../etc/passwd": 1}}, "damaged"),
        ({"files": {"config.json": 1, "a/../../b": 1}}, "damaged"),
        ({"files": {"config.json": 1, "/etc/passwd": 1}}, "damaged"),
        ({"files": {"config.json": 1, "a\\b": 1}}, "damaged"),
        ({"files": {"config.json": 1, "a//b": 1}}, "damaged"),
        ({"files": {"config.json": 1, MARKER: 1}}, "damaged"),
    ],
)
def test_a_damaged_marker_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=rf"{MARKER}: .*{message}"):
        read_marker(write(tmp_path, GOOD.to_dict() | changes))


def test_a_plan_that_would_exhaust_the_memory_is_rejected(tmp_path):
    ranges = [{"start": 0, "end": 10_000}] * 10_000
    with pytest.raises(CheckpointError, match=r"damaged .PlanError"):
        read_marker(write(tmp_path, GOOD.to_dict() | {"plan": {"base_layers": 10_000, "ranges": ranges}}))


def test_without_a_marker_the_error_says_what_the_directory_is(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_marker(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="it is not a finished checkpoint"):
        read_marker(tmp_path)
    (tmp_path / "config.json").write_text('{"solar_plugins": {}}')
    with pytest.raises(CheckpointError, match="been trained, merged or saved again"):
        read_marker(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=3) | st.just("copy"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["base_layers", "ranges", "start", "end", "initialization", "name", "config.json"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=50))
def test_random_bytes_raise_nothing_else(tmp_path_factory, data):
    directory = tmp_path_factory.getbasetemp()
    (directory / MARKER).write_bytes(data)
    with pytest.raises(CheckpointError):
        read_marker(directory)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["base.name", "base.identity", "base", "plan", "plan.ranges", "files"])), st.data())
def test_mutated_markers_are_read_correctly_or_rejected(tmp_path_factory, places, data):
    content = GOOD.to_dict() | {"format_version": FORMAT_VERSION}
    for place in places:
        *parents, key = place.split(".")
        target = content
        for parent in parents:
            target = target[parent] if isinstance(target[parent], dict) else {}
        target[key] = data.draw(json_values)
    directory = write(tmp_path_factory.getbasetemp(), content)
    with contextlib.suppress(CheckpointError):
        marker = read_marker(directory)
        assert marker.files == content["files"]
        assert marker.base_name == content["base"]["name"]
        assert len(marker.plan) <= 10_000
