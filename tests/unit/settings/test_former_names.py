"""Options under their former names: they work as the present ones do, and say so."""

from __future__ import annotations

import pytest

from pytest_llmperf.plugin.options import option_value
from pytest_llmperf.settings.options import FORMER_OPTIONS, OPTIONS

OPTION, FORMER = next(
    (option, former) for option, former in FORMER_OPTIONS if option.name == "require-accepted"
)


class Warnings:
    """A plugin that keeps the texts of what pytest warns of."""

    def __init__(self):
        self.texts = []

    def pytest_warning_recorded(self, warning_message):
        """pytest's hook."""
        assert warning_message.category is DeprecationWarning
        self.texts.append(str(warning_message.message))


def configured(pytester, *arguments, ini=""):
    """The option's value, and the texts of the warnings."""
    (pytester.path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    recorder = Warnings()
    pytester.plugins.append(recorder)
    value = option_value(pytester.parseconfigure(*arguments), OPTION)
    return value, recorder.texts


def test_no_two_options_share_a_name():
    """Present and former names alike."""
    names = [option.name for option in OPTIONS] + [former.name for _, former in FORMER_OPTIONS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("arguments", "ini"),
    [([OPTION.flag_name], ""), ([], f"{OPTION.ini_name} = true")],
    ids=["command line", "ini file"],
)
def test_the_present_name_works_without_a_warning(pytester, arguments, ini):
    """On the command line and in the ini file."""
    assert configured(pytester, *arguments, ini=ini) == (True, [])


def test_the_former_name_works_on_the_command_line_and_warns(pytester):
    """The warning has both names and says until when."""
    value, texts = configured(pytester, FORMER.flag_name)
    assert value is True
    (text,) = texts
    assert text == (
        "--llmperf-require-baseline is called --llmperf-require-accepted since 0.2; "
        "the former name goes with 0.3."
    )


def test_the_former_name_works_in_the_ini_file_and_warns(pytester):
    """With the names of the ini file."""
    value, texts = configured(pytester, ini=f"{FORMER.ini_name} = true")
    assert value is True
    assert len(texts) == 1
    assert "llmperf_require_baseline is called llmperf_require_accepted" in texts[0]


def test_the_present_name_wins_in_the_ini_file(pytester):
    """Where a project has both, and still warns of the former."""
    value, texts = configured(pytester, ini=f"{OPTION.ini_name} = false\n{FORMER.ini_name} = true")
    assert value is False
    assert len(texts) == 1


def test_without_either_name_it_is_off(pytester):
    """The default, and nothing is said."""
    assert configured(pytester) == (False, [])
