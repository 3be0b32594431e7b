"""The quantization parts, and their promise: which linear layers are quantized, into which format, in how many bytes."""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path

from msgspec import structs

from pytest_llmperf.core.effective import Effective, LeftOut, Promise, Quantized
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import CHECKPOINTS, METHODS, scheme_of
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies.base import Part

TOLERANCE = 0.03
"""How far the bytes of quantized layers may be from those that follow from their shapes."""

_SUMMARIES = {
    "int8": "LLM.int8() by bitsandbytes: int8 linear layers, outlier columns in 16 bit; an argument sets the threshold",
    "nf4": "4-bit NormalFloat by bitsandbytes, blocks of 64; 'nf4:double' quantizes the scales too",
    "fp4": "4-bit float by bitsandbytes, blocks of 64; 'fp4:double' quantizes the scales too",
    "int8wo": "int8 weights by torchao, one scale a row; inputs stay as they are",
    "int4wo": "int4 weights by torchao in groups of 64, or as many as an argument says; inputs stay as they are",
    "fp8": "float8 weights and inputs by torchao, one scale a row; 'fp8:wo' leaves the inputs as they are",
    "gptq": "the weights of a GPTQ checkpoint in a folder",
    "awq": "the weights of an AWQ checkpoint in a folder",
    "w8a8": "the weights of a compressed-tensors checkpoint: int8 weights and inputs",
    "w4a16": "the weights of a compressed-tensors checkpoint: int4 weights",
}
_EXAMPLES = {"int8": "0", "nf4": "double", "fp4": "double", "int4wo": "128", "fp8": "wo"}


def is_quantized(part: str, method: str) -> Promise:
    """Every linear layer that the part does not leave out beforehand is stored in its format, in the bytes of its shape."""

    def broken(effective: Effective) -> str | None:
        found = effective.quantized
        if found is None:
            return f"engine {effective.engine!r} did not report quantized layers ({effective.model_class})"
        return _not_converted(found) or _wrong_format(found, method) or _wrong_bytes(found)

    return Promise(f"linear layers are quantized by {part}", broken, part=part)


def _not_converted(found: Quantized) -> str | None:
    """For example: `0 of 8 linear layers are 8-bit (8 FalconLinear: not an nn.Linear, like transformer.h.0.mlp.dense)`."""
    missing = [each for each in found.left_out if not each.declared]
    if not missing and found.converted:
        return None
    asked = found.converted + sum(each.layers for each in missing)
    reasons = (
        "; ".join(map(_reason, missing))
        or "; ".join(map(_reason, found.left_out))
        or "there are none"
    )
    return f"{found.converted} of {asked} linear layers are {found.bits}-bit ({reasons})"


def _reason(left: LeftOut) -> str:
    return f"{left.layers} {left.cls}: {left.reason}, like {left.example}"


def _wrong_format(found: Quantized, method: str) -> str | None:
    wrong = sorted(set(found.formats) - set(METHODS[method].formats))
    asked = " or ".join(METHODS[method].formats)
    return (
        f"quantized layers are stored as {', '.join(wrong)}, asked for {asked}" if wrong else None
    )


def _wrong_bytes(found: Quantized) -> str | None:
    held, analytic = sum(found.held.values()), sum(found.analytic.values())
    if abs(held - analytic) <= TOLERANCE * analytic:
        return None
    return f"{found.converted} quantized layers hold {held} B ({found.held}), {analytic} B follow from their shapes"


def located(plan: LoadPlan, root: Path) -> LoadPlan:
    """`plan` with its quantized checkpoint as an absolute folder, and a strategy text that is the same on every machine.

    A relative PATH is looked up from the project's root, then from the current folder. The text names a folder below the
    root by its relative path, another one by its name alone; its content is told by the record.

    Raises:
        UsageError: the folder is not there or holds no config.json.

    """
    if plan.quantization is None or not scheme_of(plan.quantization).path:
        return plan
    method, path = plan.quantization.split(":", 1)
    folder = _folder(plan.quantization, path, root)
    inside = folder.is_relative_to(root.resolve()) and "+" not in str(folder)
    shown = folder.relative_to(root.resolve()).as_posix() if inside else folder.name
    parts = (
        f"{method}:{shown}" if part.startswith(f"{method}:") else part
        for part in plan.strategy.split("+")
    )
    return structs.replace(plan, quantization=f"{method}:{folder}", strategy="+".join(parts))


def _folder(part: str, path: str, root: Path) -> Path:
    given = Path(expanduser(path))  # noqa: PTH111  pathlib's raises for a user that does not exist
    places = dict.fromkeys(((root / given).resolve(), given.resolve()))
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        raise UsageError(
            f"strategy part {part!r}: there is no config.json in {' or '.join(map(str, places))}. "
            "Give the folder of a quantized checkpoint, relative to the project's root or absolute.",
        )
    return found


def _fields(name: str, argument: str) -> dict[str, object]:
    scheme_of(f"{name}:{argument}")
    return {"quantization": f"{name}:{argument}"}


def _part(name: str) -> Part:
    from_folder = name in CHECKPOINTS
    return Part(
        name=name,
        kind="quantization",
        summary=_SUMMARIES[name],
        fields={} if from_folder else {"quantization": name},
        promises=lambda plan: (is_quantized(plan.quantization or name, name),),
        argument=lambda argument: _fields(name, argument),
        example=f"./model-{name}" if from_folder else _EXAMPLES.get(name, ""),
    )


QUANTIZED = tuple(_part(name) for name in METHODS)
