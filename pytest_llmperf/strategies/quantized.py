"""The quantization parts, and their promise.

It says which linear layers are quantized, into which format, and in how many bytes.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import structs

from pytest_llmperf.core.effective import Effective, LeftOut, Promise, Quantized
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import METHODS, Method, scheme_of
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import folders
from pytest_llmperf.strategies.base import Part

TOLERANCE = 0.03
"""How far the bytes of quantized layers may be from those that follow from their shapes."""


def is_quantized(part: str, method: str) -> Promise:
    """Promise that linear layers are stored in the part's format, in the bytes of their shape.

    Layers that the part leaves out beforehand are not looked at.
    """
    return Promise(
        f"linear layers are quantized by {part}",
        lambda effective: _not_quantized(effective, method),
        part=part,
    )


def _not_quantized(effective: Effective, method: str) -> str | None:
    quantized = effective.quantized
    if quantized is None:
        return (
            f"engine {effective.engine!r} did not report quantized layers ({effective.model_class})"
        )
    return (
        _not_converted(quantized)
        or _passed_over(effective)
        or _wrong_format(quantized, method)
        or _wrong_bytes(quantized)
    )


def _passed_over(effective: Effective) -> str | None:
    """Return which large matrices are no linear layers, and so stay as they are."""
    groups = effective.large_other_matrices
    if not groups:
        return None
    return (
        f"linear layers alone are quantized; left as they are: {'; '.join(map(str, groups))}. "
        "A checkpoint that is stored quantized, or engine='vllm', may have them quantized too"
    )


def _not_converted(quantized: Quantized) -> str | None:
    """Return what was left out although it should have been converted.

    For example: `0 of 8 linear layers are 8-bit (8 FalconLinear: not an nn.Linear, like
    transformer.h.0.mlp.dense)`.
    """
    undeclared = [group for group in quantized.left_out if not group.declared]
    if not undeclared and quantized.converted:
        return None
    n_layers = quantized.converted + sum(group.layers for group in undeclared)
    reasons = "; ".join(map(_reason, undeclared or quantized.left_out)) or "there are none"
    return f"{quantized.converted} of {n_layers} linear layers are {quantized.bits}-bit ({reasons})"


def _reason(group: LeftOut) -> str:
    return f"{group.layers} {group.cls}: {group.reason}, like {group.example}"


def _wrong_format(quantized: Quantized, method: str) -> str | None:
    formats = METHODS[method].formats
    wrong = sorted(set(quantized.formats) - set(formats))
    if not wrong:
        return None
    return f"quantized layers are stored as {', '.join(wrong)}, asked for {' or '.join(formats)}"


def _wrong_bytes(quantized: Quantized) -> str | None:
    stored, analytic = sum(quantized.stored_bytes.values()), sum(quantized.analytic.values())
    if abs(stored - analytic) <= TOLERANCE * analytic:
        return None
    return (
        f"{quantized.converted} quantized layers hold {stored} B ({quantized.stored_bytes}), "
        f"{analytic} B follow from their shapes"
    )


def located(plan: LoadPlan, root: Path) -> LoadPlan:
    """Return `plan` with its quantized checkpoint as an absolute folder.

    Its strategy text is the same on every machine: a relative PATH is looked up from the project's
    root, then from the current folder. The text names a folder below the root by its relative path,
    another one by its name alone; its content is told by the record.

    Raises:
        UsageError: the folder is not there or holds no config.json.
    """
    if plan.quantization is None or not scheme_of(plan.quantization).path:
        return plan
    method, path = plan.quantization.split(":", 1)
    folder = _folder(plan.quantization, path, root)
    strategy = _with_folder(plan.strategy, method, folders.portable_name(folder, root))
    return structs.replace(plan, quantization=f"{method}:{folder}", strategy=strategy)


def _with_folder(strategy: str, method: str, name: str) -> str:
    parts = strategy.split("+")
    return "+".join(f"{method}:{name}" if part.startswith(f"{method}:") else part for part in parts)


def _folder(part: str, path: str, root: Path) -> Path:
    candidates = folders.candidates(path, root)
    folder = folders.first(candidates, _has_config)
    if folder is None:
        raise UsageError(
            f"strategy part {part!r}: there is no config.json in "
            f"{folders.or_listed(candidates)}. Give the folder of a quantized checkpoint, "
            "relative to the project's root or absolute.",
        )
    return folder


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _fields(name: str, argument: str) -> dict[str, object]:
    scheme_of(f"{name}:{argument}")
    return {"quantization": f"{name}:{argument}"}


def _part(method: Method) -> Part:
    name = method.name
    return Part(
        name=name,
        kind="quantization",
        summary=method.described,
        fields={} if method.checkpoint else {"quantization": name},
        promises=lambda plan: (is_quantized(plan.quantization or name, name),),
        argument=lambda argument: _fields(name, argument),
        example=method.example,
    )


QUANTIZED = tuple(map(_part, METHODS.values()))
