"""A run that ends with an error of ours prints its message, and the hooks of other packages stay."""

import sys

import pytest

from solar_plugins.axolotl_adapter.excepthook import errors_as_paragraphs
from solar_plugins.errors import ArgsError, SolarError


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """The errors that reached another package's hook, which was installed first."""
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    return seen


def fail(error):
    with pytest.raises(type(error)), errors_as_paragraphs():
        raise error


def end_with(error):
    sys.excepthook(type(error), error, None)


def test_an_error_of_ours_is_printed_and_any_other_goes_to_the_previous_hook(others, capsys):
    fail(ArgsError("solar.init: wrong"))
    bug = KeyError("bug")
    end_with(ArgsError("solar.init: wrong"))
    end_with(bug)
    assert capsys.readouterr().err == "\nsolar_plugins: solar.init: wrong\n\n"
    assert others == [bug]


@pytest.mark.parametrize("error", [KeyError("bug"), SystemExit(1), KeyboardInterrupt()])
def test_nothing_is_installed_for_other_errors(error):
    before = sys.excepthook
    fail(error)
    with errors_as_paragraphs():
        pass
    assert sys.excepthook is before


def test_a_second_failure_does_not_install_a_second_hook():
    """`register` may run, and fail, more than once in a process, as in a sweep or a notebook."""
    fail(SolarError("first"))
    installed = sys.excepthook
    fail(SolarError("second"))
    assert sys.excepthook is installed


def test_a_hook_that_another_package_chained_to_ours_stays(others, capsys):
    fail(SolarError("first"))
    ours, later = sys.excepthook, []

    def chained(kind, error, trace):
        later.append(error)
        ours(kind, error, trace)

    sys.excepthook = chained
    fail(SolarError("second"))
    bug = KeyError("bug")
    end_with(SolarError("second"))
    end_with(bug)
    assert capsys.readouterr().err == "\nsolar_plugins: second\n\n", "once"
    assert (later, others) == ([bug], [bug])


def test_with_the_debug_switch_the_traceback_and_its_cause_come_before_the_message(others, capsys, monkeypatch):
    def read():
        try:
            raise KeyError("the cause")
        except KeyError:
            raise ArgsError("solar.init: wrong") from None

    monkeypatch.setenv("SOLAR_PLUGINS_DEBUG", "1")
    with pytest.raises(ArgsError) as caught, errors_as_paragraphs():
        read()
    end_with(caught.value)
    first, message = capsys.readouterr().err.split("\nsolar_plugins: ")
    assert message == "solar.init: wrong\n\n"
    assert first.index("KeyError: 'the cause'") < first.index("ArgsError: solar.init: wrong")
    assert "in read" in first
    assert others == []
