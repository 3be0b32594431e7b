"""Errors a user can see.

Each says what happened, to which value, what was possible, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_llmperf.plain_text import shown


class Shown(Exception):
    """An exception whose text quotes others: servers, workers, logs, prompts, stores.

    Wherever it is printed, stored or passed on, it has no secret, no control character and no
    workflow command, and it is bounded.
    """

    def __str__(self) -> str:
        """Return the message as it may be shown."""
        return shown(super().__str__())

    def add_note(self, note: str) -> None:
        """Add a note as it may be shown."""
        super().add_note(shown(note))


class LlmperfError(Shown):
    """Base of every error of this plugin.

    In a test it is an ERROR (not measured), never a FAILED (measured, too slow).
    """


class UsageError(LlmperfError):
    """A value that the user wrote cannot be used.

    It is an option, a marker argument, a strategy part, a model name, or a line of a prompts file.
    """


class UnknownAttribute(UsageError, AttributeError):
    """A test asks a result for an attribute that it does not have."""


class LoadError(LlmperfError):
    """The model could not be loaded by the worker."""


class WorkerError(LlmperfError):
    """The worker process failed. The message ends with the last lines of its log."""


class WorkerDied(WorkerError):
    """The worker process ended (crash, signal, kill) before it answered."""


class WorkerHung(WorkerError):
    """The worker did not answer within the command's deadline; its stacks are in the message."""


class RanksDisagree(WorkerError):
    """The ranks of one model gave answers that must be equal and are not.

    The message names the ranks.
    """


class OutOfMemory(WorkerError):
    """The device or the host ran out of memory, or was predicted to before loading."""


class NotInEffect(LlmperfError):
    """What was loaded is not what the strategy promised. Nothing was sampled."""


class InvalidRun(LlmperfError):
    """Samples were taken, but too few of them are valid.

    The others were throttled, disturbed by foreign load, never stable, or of the wrong length.
    """


class SteadyLoad(InvalidRun):
    """Other programs worked beside one repetition after another, and do not end."""


class BeyondCeiling(InvalidRun):
    """A run used more than all of a device: its time, its cost or the device's ceiling is wrong."""


class NoRequestSucceeded(InvalidRun):
    """Not one request of a run gave an output, so that nothing can be derived from it."""


class NotMeasured(LlmperfError):
    """A test used a quantity that could not be measured here. The message carries the reason."""


class DeviceBusy(LlmperfError):
    """Another session measures on the device and did not finish in time.

    The message names the holder.
    """


class MemoryNotReturned(LlmperfError):
    """A test is over, and memory that its model took is still in use.

    The message names who holds how many bytes.
    """


class StoreError(LlmperfError):
    """The history store cannot be opened, read or written."""


def error_class(kind: str) -> type[LlmperfError]:
    """Return the class of that name, which another process sent; WorkerError for an unknown one."""
    error = globals().get(kind)
    return error if isinstance(error, type) and issubclass(error, LlmperfError) else WorkerError


def did_you_mean(
    value: str,
    choices: Iterable[str],
    meanings: Mapping[str, str] | None = None,
    *,
    otherwise: str = "",
) -> str:
    """Return a sentence that suggests the nearest of `choices`, with a space before it.

    Where none is near it is `otherwise`, which lists them all: with a suggestion nobody needs the
    list. `meanings` has what a thing is called elsewhere -> its name here, and comes before the
    spelling; dashes, underscores, dots and spaces make no difference there.
    """
    import difflib  # noqa: PLC0415 - only when something is misspelt

    meant = {_bare(other): name for other, name in (meanings or {}).items()}.get(_bare(value))
    nearest = [meant] if meant else difflib.get_close_matches(value, list(choices), 1, 0.5)
    if nearest:
        return f" Did you mean {nearest[0]!r}?"
    return f" {otherwise}" if otherwise else ""


def _bare(name: str) -> str:
    """Return the letters and digits of a name in lower case."""
    return "".join(filter(str.isalnum, name.lower()))
