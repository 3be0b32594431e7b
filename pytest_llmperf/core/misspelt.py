"""What a test misspells, with a suggestion: attributes of results, and keywords of calls.

Type checkers do not see these methods, and so find the same mistakes themselves.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from msgspec import Struct, StructMeta

from pytest_llmperf.errors import UnknownAttribute, UsageError, did_you_mean

_Class = TypeVar("_Class", bound=type)

MEANINGS = {
    "tps": "throughput",
    "tokens_per_second": "throughput",
    "time_to_first_token": "ttft",
    "time_per_output_token": "tpot",
    "inter_token_latency": "itl",
    "e2e": "latency",
    "e2e_latency": "latency",
    "vram": "memory.device",
    "peak_memory": "memory.peak",
    "weights": "memory.weights",
    "joules_per_token": "energy.per_token",
    "median": "p50",
    "average": "mean",
    "maximum": "max",
}
"""What an attribute is called elsewhere -> its name here."""


METRIC_MEANINGS = {
    "tps": "throughput",
    "speed": "throughput",
    "tokens_per_second": "throughput",
    "tok/s": "throughput",
    "ttft": "ttft.p50",
    "time_to_first_token": "ttft.p50",
    "tpot": "tpot.p50",
    "itl": "itl.p50",
    "latency": "latency.p50",
    "e2e": "latency.p50",
    "memory": "memory.peak",
    "peak_memory": "memory.peak",
    "vram": "memory.device",
    "weights": "memory.weights",
    "energy": "energy.per_token",
}
"""What a metric is called elsewhere, or is a family of -> its name here."""

_WRONG_ARGUMENTS = ("Extra positional", "Missing required", "Argument ")
"""How msgspec begins what it says of arguments."""

_PERCENTILE = re.compile(r"p\d+")


class Suggests:
    """An attribute that is not there is an error with the one that was perhaps meant."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise UnknownAttribute, or the error of a property that has this name."""
            # Protocols that ask what an object can do (copy, pickle, pytest) need a plain no.
            if name.startswith("_") or hasattr(type(self), name):
                return object.__getattribute__(self, name)
            raise _unknown_attribute(type(self), name)


class ManyNumbers:
    """A result that has several quantities: an order is asked of one of them."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def _refuse(self, _other: object) -> NoReturn:
            """Raise UsageError: one of the quantities is needed."""
            kind = type(self)
            raise UsageError(
                f"{kind.__name__} is several quantities and no number: compare one of them, "
                f"for example .{_attributes(kind)[0]} ({_listed(kind)})."
            )

        __lt__ = __le__ = __gt__ = __ge__ = _refuse


class SuggestingMeta(StructMeta):
    """Makes structs whose misspelt keywords are errors with a suggestion."""

    if not TYPE_CHECKING:

        def __call__(cls, *args: Any, **keywords: Any) -> Any:  # noqa: N805 - of a metaclass
            """Make one. Raises UsageError for arguments that the struct has not, or lacks."""
            require_keywords(cls.__name__, keywords, cls.__struct_fields__)
            try:
                return super().__call__(*args, **keywords)
            except TypeError as error:
                if not str(error).startswith(_WRONG_ARGUMENTS):
                    raise
                raise _wrong_arguments(cls.__name__, error, cls.__struct_fields__) from None


def suggests_keywords(cls: _Class) -> _Class:
    """Make misspelt keywords of a class's public methods errors with a suggestion."""
    for name, method in list(vars(cls).items()):
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(cls, name, suggesting(method, f".{name}"))
    return cls


def suggesting(function: Callable[..., Any], title: str) -> Callable[..., Any]:
    """Return the function with an error of ours for arguments that it does not take, or lacks."""
    signature = inspect.signature(function)
    known = [name for name in signature.parameters if name != "self"]

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        require_keywords(title, keywords, known)
        try:
            signature.bind(*args, **keywords)
        except TypeError as error:
            raise _wrong_arguments(title, error, known) from None
        return function(*args, **keywords)

    return call


def require_keywords(title: str, keywords: Collection[str], known: Collection[str]) -> None:
    """Raise UsageError for the first of the keywords that is not known."""
    unknown = next((name for name in keywords if name not in known), None)
    if unknown is None:
        return
    takes = f"It takes: {', '.join(known)}." if known else "It takes none."
    near = did_you_mean(unknown, known, otherwise=takes)
    raise UsageError(f"{title}({unknown}=…): argument {unknown!r} is not known.{near}")


def _wrong_arguments(title: str, error: TypeError, known: Collection[str]) -> UsageError:
    takes = f"It takes: {', '.join(known)}." if known else "It takes none."
    return UsageError(f"{title}(…): {error}. {takes}")


def _unknown_attribute(kind: type, name: str) -> UnknownAttribute:
    known = _attributes(kind)
    meanings = {
        other: meant for other, meant in MEANINGS.items() if meant.partition(".")[0] in known
    }
    near = _nearest_percentile(name, known) or did_you_mean(name, known, meanings)
    return UnknownAttribute(
        f"{kind.__name__} has no {name!r}.{near or f' It has: {_listed(kind)}.'}"
    )


def _nearest_percentile(name: str, known: Collection[str]) -> str:
    """Suggest the percentile whose number is nearest; "" where none is asked for, or none is."""
    if not _PERCENTILE.fullmatch(name):
        return ""
    wanted = int(name[1:])
    there = [int(other[1:]) for other in known if _PERCENTILE.fullmatch(other)]
    nearest = min(there, key=lambda number: abs(number - wanted), default=None)
    return "" if nearest is None else f" Did you mean 'p{nearest}'?"


def _listed(kind: type) -> str:
    return ", ".join(_attributes(kind))


def _attributes(kind: type) -> list[str]:
    """Return the public attributes of a class: a struct's fields first, in their order."""
    fields = kind.__struct_fields__ if issubclass(kind, Struct) else ()
    others = [name for name in dir(kind) if not name.startswith("_") and name not in fields]
    return [*fields, *others]
