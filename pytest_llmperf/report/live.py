"""One line on the terminal that says what the running test is doing.

It is rewritten in place, and gone before pytest prints on.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TextIO

import pytest

from pytest_llmperf.core.format import format_duration
from pytest_llmperf.report.table import display_width, shorten, showable, take, without_file

INTERVAL_S = 0.2
TICK_S = 1.0
"""How often the clock of a phase goes on by itself."""

_LONG_S = 3
"""A phase that took so long shows its clock, where its text has none."""
_ERASE_LINE = "\r\x1b[2K"
_UP = "\x1b[1A"


class LiveLine:
    """A line below pytest's own, rewritten at most five times a second and erased without a trace.

    `stream` must bypass pytest's capture. Nothing at all is written unless `enabled`. `used` tells
    how many columns pytest has written in its unfinished line: the cursor goes back there.
    `columns` is the width of the terminal now.
    """

    def __init__(
        self,
        stream: TextIO,
        enabled: bool,
        *,
        used: Callable[[], int] = lambda: 0,
        columns: Callable[[], int] = lambda: 80,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enabled = enabled
        self._stream = stream
        self._used = used
        self._columns = columns
        self._clock = clock
        self._written_at_s = -INTERVAL_S
        self._phase: tuple[str, str] | None = None
        self._began_s = 0.0
        self._shown: tuple[str, float | None] = ("", None)
        self._restore = ""
        self._lock = threading.RLock()
        self._closed = threading.Event()

    def start_clock(self) -> None:
        """Let the clock of the phase go on between updates, in a thread of its own."""
        threading.Thread(target=self._tick, name="llmperf-live", daemon=True).start()

    def _tick(self) -> None:
        while not self._closed.wait(TICK_S):
            self.tick()

    def tick(self) -> None:
        """Write the line anew with the clock of now, where there is a line."""
        with self._lock:
            if self._restore and self._phase is not None:
                self._rewrite(*self._phase, *self._shown)

    def update(self, test: str, phase: str, detail: str = "", eta_s: float | None = None) -> None:
        """Show "test  phase detail, about 6 s left".

        An update too soon after the last is dropped unless the phase is new.
        """
        with self._lock:
            t_s = self._clock()
            is_too_soon = (test, phase) == self._phase and t_s - self._written_at_s < INTERVAL_S
            if not self.enabled or is_too_soon:
                return
            if (test, phase) != self._phase:
                self._began_s = t_s
            self._rewrite(test, phase, detail, eta_s)

    def _rewrite(self, test: str, phase: str, detail: str, eta_s: float | None) -> None:
        begin = _ERASE_LINE if self._restore else self._begin()
        if begin is None:
            return
        t_s = self._clock()
        self._phase, self._written_at_s = (test, phase), t_s
        self._shown = (detail, eta_s)
        activity = _activity(phase, detail, eta_s, t_s - self._began_s)
        self._write(begin + self._fit(test, activity))

    def clear(self) -> None:
        """Erase the line and put the cursor back where pytest left it.

        Does nothing when no line is shown.
        """
        with self._lock:
            if self._restore:
                self._write(_ERASE_LINE + self._restore)
            self._restore, self._phase = "", None

    def close(self) -> None:
        """Clear, show nothing from now on, and close the stream."""
        self._closed.set()
        self.clear()
        self.give_up()
        with suppress(OSError):  # what a terminal that went away did not take
            self._stream.close()

    def give_up(self) -> None:
        """Show nothing from now on, and leave the terminal as it is: somebody else writes to it."""
        with self._lock:
            self.enabled, self._restore = False, ""

    def _begin(self) -> str | None:
        """Return how to get to the line; sets how to get back.

        None where the cursor's column cannot be known (a full line).
        """
        used, columns = self._used(), self._columns()
        is_full = used > 0 and columns > 0 and used % columns == 0
        if used < 0 or columns < 2 or is_full:  # noqa: PLR2004 - one column holds no text
            return None
        self._restore = f"{_UP}\x1b[{used % columns + 1}G" if used else "\r"
        return "\n" + _ERASE_LINE if used else _ERASE_LINE

    def _fit(self, test: str, activity: str) -> str:
        """Return the text of the line; the test's name gives way before what it does.

        The last column stays empty, or some terminals would wrap.
        """
        width = self._columns() - 1
        encoding = self._stream.encoding or "utf-8"
        activity = showable(activity, encoding)
        room = max(width - display_width(activity) - 2, min(12, width // 3))
        name = shorten(showable(without_file(test), encoding), room)
        return showable(take(f"{name}  {activity}", width), encoding)

    def _write(self, text: str) -> None:
        """Write to the terminal; where it went away the line is given up, and no test fails."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self.give_up()


class ClearBeforeReports:
    """Plugin that erases the line before pytest prints, whatever ended the test."""

    def __init__(self, live: LiveLine) -> None:
        self.live = live

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self) -> None:
        """Clear: a phase of a test is about to be reported."""
        self.live.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Clear: the user interrupts the session."""
        self.live.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self) -> None:
        """Clear: an error of pytest or of a plugin is about to be printed."""
        self.live.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_enter_pdb(self) -> None:
        """Give up: the debugger takes the terminal over, and has written to it already."""
        self.live.give_up()


def open_live(config: pytest.Config) -> LiveLine:
    """Return the live line of a pytest run, cleared before reports and closed with `config`.

    It writes to its own duplicate of the terminal's descriptor, taken while capture is suspended,
    so that neither is captured output released nor the line captured. Silent (it writes nothing)
    without a terminal, on a dumb terminal, under -q, in a pytest-xdist worker, and where tests or
    their children write to the terminal too: with live logs, or unless capture is by descriptor
    (the default).
    """
    stream = _own_terminal(config) if _may_show(config) else None
    if stream is None:
        return LiveLine(io.StringIO(), enabled=False)
    writer = config.get_terminal_writer()
    live = LiveLine(
        stream,
        enabled=True,
        used=lambda: writer.width_of_current_line,
        columns=lambda: _columns(stream),
    )
    config.pluginmanager.register(ClearBeforeReports(live), "llmperf-live")
    config.add_cleanup(live.close)
    live.start_clock()
    return live


def _may_show(config: pytest.Config) -> bool:
    is_captured = config.getoption("capture", "no") == "fd"
    is_quiet = config.get_verbosity() < 0
    is_xdist_worker = hasattr(config, "workerinput")
    can_rewrite = os.environ.get("TERM") != "dumb" and os.name != "nt"
    is_ours = is_captured and not _has_live_logs(config)
    return is_ours and can_rewrite and not is_quiet and not is_xdist_worker


def _has_live_logs(config: pytest.Config) -> bool:
    if not config.pluginmanager.hasplugin("logging"):
        return False
    return bool(config.getini("log_cli") or config.getoption("log_cli_level"))


def _own_terminal(config: pytest.Config) -> TextIO | None:
    """Return a new text stream on pytest's terminal, None when pytest does not write to one."""
    if config.pluginmanager.get_plugin("terminalreporter") is None:
        return None
    file = getattr(config.get_terminal_writer(), "_file", None)
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
        try:
            if file is None or not file.isatty():
                return None
            descriptor = os.dup(file.fileno())
        except (OSError, ValueError):  # no descriptor behind it, or a closed one
            return None
    # The line closes it, with the config.
    return open(descriptor, "w", encoding=file.encoding, errors="backslashreplace")  # noqa: PTH123


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return 0


def _activity(phase: str, detail: str, eta_s: float | None, since_s: float) -> str:
    """Return what the test does, with the time that is left or, where none is known, its clock."""
    text = f"{phase} {detail}".rstrip()
    if eta_s is not None:
        return f"{text}, about {format_duration(max(1.0, eta_s))} left"
    has_clock = " s of " in detail
    return text if has_clock or since_s < _LONG_S else f"{text}, {format_duration(since_s)}"
