"""The live line: what it writes, and that it leaves no trace on a terminal."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.report.live import INTERVAL_S, LiveLine
from pytest_llmperf.report.table import display_width

ESCAPE = "\x1b"
COLUMNS = 72


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Screen:
    """As much of a terminal as pytest and the line use: CR, LF, wrapping, cursor up, column, erase.

    Colours are ignored.

    `seen` holds every line that was ever on the screen.
    """

    def __init__(self, columns=COLUMNS):
        self.columns = columns
        self.rows = [""]
        self.row = self.column = 0
        self.seen = set()

    def feed(self, text):
        for code in re.findall(r"\x1b\[[\d;?]*[a-zA-Z]|[\s\S]", text):
            self._code(code) if code.startswith(ESCAPE) else self._char(code)
        return self

    def _char(self, char):
        self.seen.add(self.rows[self.row])
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row += 1
            self.rows += [""] * (self.row + 1 - len(self.rows))
        else:
            if self.column == self.columns:
                self._char("\n")
                self.column = 0
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + char + line[self.column + 1 :]
            self.column += 1

    def _code(self, code):
        self.seen.add(self.rows[self.row])
        number, final = int(code[2:-1].split(";")[0] or 0), code[-1]
        if final == "A":
            self.row -= number or 1
        elif final == "G":
            self.column = max(1, number) - 1
        elif final == "K":
            self.rows[self.row] = "" if number == 2 else self.rows[self.row][: self.column]
        else:
            assert final == "m", f"the screen does not know {code!r}"

    @property
    def text(self):
        return "\n".join(self.rows).rstrip("\n")


def _live(*, used=0, columns=COLUMNS, clock=None, stream=None):
    stream = stream or io.StringIO()
    return LiveLine(
        stream, enabled=True, used=lambda: used, columns=lambda: columns, clock=clock or Clock()
    ), stream


def test_the_line_says_which_test_does_what_and_how_long_it_takes():
    live, stream = _live()
    live.update("tests/test_a.py::test_x[bf16]", "sampling", "14, ±1.8 % → ±1 %", 6.2)
    assert (
        Screen().feed(stream.getvalue()).text
        == "test_x[bf16]  sampling 14, ±1.8 % → ±1 %, about 6 s left"
    )


def test_a_long_phase_shows_its_clock():
    """It goes on between updates, begins anew with a phase, and leaves the line alone once gone."""
    clock = Clock()
    live, stream = _live(clock=clock)
    live.update("test_x", "loading", "models/big fp32")
    clock.now_s = 2.0
    live.tick()
    assert Screen().feed(stream.getvalue()).text == "test_x  loading models/big fp32"
    clock.now_s = 20.4
    live.tick()
    assert Screen().feed(stream.getvalue()).text == "test_x  loading models/big fp32, 20 s"
    live.update("test_x", "warming up", "fp32 1")
    assert Screen().feed(stream.getvalue()).text == "test_x  warming up fp32 1"
    clock.now_s = 60.4
    live.update("test_x", "sampling", "3, 20.9 tok/s ±14 % (goal ±1 %), 11 s of 20 s")
    clock.now_s = 66.4
    live.tick()
    assert Screen().feed(stream.getvalue()).text.endswith("(goal ±1 %), 11 s of 20 s")
    live.clear()
    written = stream.getvalue()
    live.tick()
    assert stream.getvalue() == written


@pytest.mark.parametrize(
    "before", ["", "tests/test_a.py .", "x" * (COLUMNS - 1), "y" * (2 * COLUMNS + 5)]
)
def test_after_clearing_pytest_goes_on_where_it_was(before):
    """Also when its own line takes several rows of the terminal."""
    screen = Screen()
    rows = [before[i : i + COLUMNS] for i in range(0, len(before), COLUMNS)]
    screen.feed("\r\n".join(rows))
    live, stream = _live(used=len(before))
    live.update("test_x", "loading", "smollm2-135m")
    live.update("test_x", "warming up", "bf16 1")
    live.clear()
    screen.feed(stream.getvalue()).feed("F")
    assert "test_x  warming up bf16 1" in screen.seen
    assert [row for row in screen.rows if row] == [*rows[:-1], (rows[-1] if rows else "") + "F"]


def test_updates_of_one_phase_come_at_most_five_times_a_second():
    clock = Clock()
    live, stream = _live(clock=clock)
    for step in range(1000):
        clock.now_s = step * 0.001
        live.update("test_x", "sampling", str(step))
    assert stream.getvalue().count("sampling") == 5


def test_a_new_phase_is_shown_at_once():
    """A phase may block for minutes right after it began: its text must not be dropped."""
    live, stream = _live()
    live.update("test_x", "loading")
    live.update("test_x", "sampling")
    assert "sampling" in stream.getvalue()


def test_it_is_rewritten_once_the_interval_is_over():
    clock = Clock()
    live, stream = _live(clock=clock)
    live.update("test_x", "sampling", "1")
    clock.now_s = INTERVAL_S
    live.update("test_x", "sampling", "2")
    assert Screen().feed(stream.getvalue()).text == "test_x  sampling 2"


def test_disabled_it_writes_nothing():
    stream = io.StringIO()
    live = LiveLine(stream, enabled=False)
    live.update("test_x", "loading")
    live.clear()
    assert stream.getvalue() == ""


def test_clearing_what_is_not_shown_writes_nothing():
    live, stream = _live(used=7)
    live.clear()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("used", [COLUMNS, -1])
def test_it_stays_away_where_the_cursor_is_not_known(used):
    """A full line leaves the cursor in doubt; pytest's writer says -1 after control characters."""
    live, stream = _live(used=used)
    live.update("test_x", "loading")
    assert stream.getvalue() == ""


@given(
    st.text(),
    st.text(max_size=30),
    st.text(),
    st.one_of(st.none(), st.floats(0, 1e6)),
    st.integers(2, 120),
)
def test_the_line_never_wraps_and_holds_no_control_code_of_others(
    test, phase, detail, eta_s, columns
):
    live, stream = _live(columns=columns)
    live.update(test, phase, detail, eta_s)
    shown = stream.getvalue().removeprefix("\r\x1b[2K")
    assert shown.isprintable()
    assert display_width(shown) < columns


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, _text):
        raise OSError(5, "Input/output error")


def test_a_terminal_that_went_away_does_not_fail_the_test():
    live, _ = _live(stream=Gone())
    live.update("test_x", "loading")
    assert not live.enabled
    live.clear()
    live.close()


# With a real pytest on a real terminal

CONFTEST = """
import pytest
from pytest_llmperf.report.live import open_live

@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    config.live = open_live(config)

@pytest.fixture
def live(pytestconfig):
    return pytestconfig.live
"""
TESTS = """
import os

def test_one(live):
    print("captured print")
    os.system("echo captured child")
    live.update("test_one[bf16]", "loading", "smollm2-135m")
    live.update("test_one[bf16]", "sampling", "14", 6)

def test_two(live, capfd):
    live.update("test_two", "loading", "another")
    assert capfd.readouterr().out == ""

def test_three(live):
    live.update("test_three", "loading", "the last")
    assert False, "on purpose"
"""


@pytest.fixture
def project(pytester):
    """A project whose tests show the line, without our plugin."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_live=TESTS)
    return pytester


def _environment(**changes):
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in {"CI", "BUILD_NUMBER", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLUMNS"}
    }
    return {
        **env,
        "TERM": "xterm",
        "PYTHONUTF8": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **changes,
    }


def _on_a_terminal(path, *args, **environment):
    """Run pytest on a pseudo-terminal of COLUMNS columns; everything it wrote."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *args]
    process = subprocess.Popen(
        command,
        cwd=path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=_environment(**environment),
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # EIO: the other end was closed, which is how a terminal ends on Linux
        pass
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return written.decode()


def _without_times(text):
    return re.sub(r"in \d+\.\d+s =*", "in N", text)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("args", [[], ["-v"]])
def test_on_a_terminal_the_line_appears_and_leaves_no_trace(project, args):
    written = _on_a_terminal(project.path, *args)
    screen = Screen().feed(written)
    assert "test_one[bf16]  sampling 14, about 6 s left" in screen.seen
    assert any("test_two  loading another" in line for line in screen.seen), "also under capfd"
    without = Screen().feed(_on_a_terminal(project.path, *args, TERM="dumb", PY_COLORS="1"))
    assert "sampling" not in without.text
    assert _without_times(screen.text) == _without_times(without.text)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize(
    "args", [["-q"], ["-s"], ["--capture=sys"], ["--capture=tee-sys"], ["--log-cli-level=INFO"]]
)
def test_it_is_silent_when_asked_to_be_quiet_or_when_tests_share_the_terminal(project, args):
    written = _on_a_terminal(project.path, *args)
    assert "sampling" not in written
    assert "1 failed" in written


def test_before_pytest_has_a_terminal_reporter_there_is_no_line(pytester):
    """Asking for pytest's writer then is an internal error of pytest."""
    pytester.makeconftest(
        CONFTEST.replace("@pytest.hookimpl(trylast=True)", "@pytest.hookimpl(tryfirst=True)")
    )
    pytester.makepyfile(test_live=TESTS)
    written = _on_a_terminal(pytester.path)
    assert "2 passed" in written
    assert "sampling" not in written


def test_piped_output_holds_no_escape_code(project):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command,
        cwd=project.path,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
        timeout=60,
    )
    assert "2 passed" in run.stdout
    assert ESCAPE not in run.stdout + run.stderr
    assert "sampling" not in run.stdout + run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_an_xdist_worker_is_silent(project):
    written = _on_a_terminal(project.path, "-p", "xdist.plugin", "-n", "1")
    assert "2 passed" in written
    assert "sampling" not in written
