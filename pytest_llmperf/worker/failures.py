"""An error as it travels from a worker to the session."""

from __future__ import annotations

import traceback

from pytest_llmperf import errors
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.wire.messages import Failure


def failure(error: BaseException) -> Failure:
    """Return the error as it travels.

    Text that UTF-8 cannot carry (undecodable file names) is escaped.
    """
    text = "".join(traceback.format_exception(error))
    return Failure(kind=kind(error), message=_sendable(_message(error)), traceback=_sendable(text))


def kind(error: BaseException) -> str:
    """Return the name of the error's nearest class in `errors`, or else its own.

    MemoryError and torch's OutOfMemoryError are OutOfMemory (torch is not imported).
    """
    names = [cls.__name__ for cls in type(error).__mro__]
    if "MemoryError" in names or "OutOfMemoryError" in names:
        return errors.OutOfMemory.__name__
    known = (
        cls.__name__
        for cls in type(error).__mro__
        if issubclass(cls, LlmperfError) and hasattr(errors, cls.__name__)
    )
    return next(known, names[0])


def _message(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, LlmperfError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
