"""Quantization of linear layers: what a strategy part asks for, and the bytes of a layer. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pytest_llmperf.errors import UsageError, did_you_mean

BITSANDBYTES_BLOCK = 64
"""Weights that share one absmax in bitsandbytes' 4-bit formats (its default, which QLoRA uses)."""
NESTED_BLOCK = 256
"""absmax values that share one second-level absmax under double quantization."""
GROUPS = (32, 64, 128, 256)
"""Group sizes of torchao's int4 weights."""
TILE = 1024
"""torchao's tile-packed int4 layout (CUDA) pads the input dimension to a multiple of this."""
TILE_ROWS = 8
"""The same layout pads the output dimension to a multiple of this."""
OUTLIER = 6.0
"""LLM.int8()'s threshold (Dettmers et al. 2022).

Input columns with a larger magnitude are multiplied in 16 bit.
"""


class Scheme(Struct, frozen=True, kw_only=True):
    """What `LoadPlan.quantization` asks for.

    `double` says that the scales of nf4 and fp4 are quantized too. `threshold` is LLM.int8()'s
    outlier threshold, 0 for none. `group` weights share a scale, 0 for a whole row. `weight_only`
    leaves inputs as they are (fp8:wo). `path` is the folder of a checkpoint, absolute in a plan
    that is loaded.
    """

    method: str
    double: bool = False
    threshold: float = OUTLIER
    group: int = 0
    weight_only: bool = False
    path: str = ""

    @property
    def row(self) -> Method:
        """The method's row of METHODS."""
        return METHODS[self.method]


def _double_scales(default: Scheme, argument: str) -> Scheme | None:
    return replace(default, double=True) if argument == "double" else None


def _weights_only(default: Scheme, argument: str) -> Scheme | None:
    return replace(default, weight_only=True) if argument == "wo" else None


def _group_size(default: Scheme, argument: str) -> Scheme | None:
    return replace(default, group=int(argument)) if argument in map(str, GROUPS) else None


def _outlier_threshold(default: Scheme, argument: str) -> Scheme | None:
    try:
        threshold = float(argument)
    except ValueError:
        return None
    return replace(default, threshold=threshold) if 0 <= threshold < math.inf else None


class Argument(NamedTuple):
    """What may stand behind a part's colon, in words, an example, and the function that reads it.

    The function takes the scheme without an argument, and returns None for what it cannot read.
    """

    text: str
    example: str
    read: Callable[[Scheme, str], Scheme | None]


class Method(Struct, frozen=True, kw_only=True):
    """One way to store a linear layer.

    `formats` are the names under which converted layers are seen (`Quantized.formats`). `summary`
    is a few words for messages, `described` what the page of strategies says. `group` is how many
    weights share a scale by default, 0 for a whole row. A `checkpoint` was quantized before, and
    its argument is a folder.
    """

    name: str
    bits: int
    library: str
    extra: str
    summary: str
    described: str
    formats: tuple[str, ...] = ()
    group: int = 0
    argument: Argument | None = None
    checkpoint: bool = False

    @property
    def example(self) -> str:
        """An argument that may stand behind the part's colon; "" where none may."""
        if self.checkpoint:
            return f"./model-{self.name}"
        return self.argument.example if self.argument else ""


_BITSANDBYTES: dict[str, Any] = {"library": "bitsandbytes", "extra": "bitsandbytes"}
_TORCHAO: dict[str, Any] = {"library": "torchao", "extra": "torchao"}
_CHECKPOINT: dict[str, Any] = {
    "library": "compressed_tensors",
    "extra": "compressed-tensors",
    "checkpoint": True,
}
_DOUBLE = Argument("'double' (the scales are quantized too)", "double", _double_scales)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="int8",
            bits=8,
            summary="LLM.int8()",
            described="LLM.int8() by bitsandbytes: int8 linear layers, outlier columns in 16 bit; "
            "an argument sets the threshold",
            formats=("llm.int8",),
            argument=Argument(
                "the outlier threshold, a number of at least 0 (0: no outliers, default 6)",
                "0",
                _outlier_threshold,
            ),
            **_BITSANDBYTES,
        ),
        Method(
            name="nf4",
            bits=4,
            summary="4-bit NormalFloat",
            described="4-bit NormalFloat by bitsandbytes, blocks of 64; "
            "'nf4:double' quantizes the scales too",
            formats=("nf4",),
            group=BITSANDBYTES_BLOCK,
            argument=_DOUBLE,
            **_BITSANDBYTES,
        ),
        Method(
            name="fp4",
            bits=4,
            summary="4-bit float",
            described="4-bit float by bitsandbytes, blocks of 64; "
            "'fp4:double' quantizes the scales too",
            formats=("fp4",),
            group=BITSANDBYTES_BLOCK,
            argument=_DOUBLE,
            **_BITSANDBYTES,
        ),
        Method(
            name="int8wo",
            bits=8,
            summary="int8 weights, one scale a row",
            described="int8 weights by torchao, one scale a row; inputs stay as they are",
            formats=("Int8Tensor",),
            **_TORCHAO,
        ),
        Method(
            name="int4wo",
            bits=4,
            summary="int4 weights in groups",
            described="int4 weights by torchao in groups of 64, or as many as an argument says; "
            "inputs stay as they are",
            formats=("Int4TilePackedTo4dTensor", "Int4OpaqueTensor"),
            group=64,
            argument=Argument(
                f"the group size: {', '.join(map(str, GROUPS))} (default 64)", "128", _group_size
            ),
            **_TORCHAO,
        ),
        Method(
            name="fp8",
            bits=8,
            summary="float8 weights and inputs, one scale a row",
            described="float8 weights and inputs by torchao, one scale a row; "
            "'fp8:wo' leaves the inputs as they are",
            formats=("Float8Tensor", "float8_e4m3fn"),
            argument=Argument("'wo' (weights only)", "wo", _weights_only),
            **_TORCHAO,
        ),
        Method(
            name="gptq",
            bits=4,
            summary="GPTQ checkpoint",
            described="the weights of a GPTQ checkpoint in a folder",
            formats=("pack-quantized",),
            **_CHECKPOINT,
        ),
        Method(
            name="awq",
            bits=4,
            summary="AWQ checkpoint",
            described="the weights of an AWQ checkpoint in a folder",
            formats=("pack-quantized",),
            **_CHECKPOINT,
        ),
        Method(
            name="w8a8",
            bits=8,
            summary="checkpoint of int8 weights and inputs",
            described="the weights of a compressed-tensors checkpoint: int8 weights and inputs",
            formats=("int-quantized",),
            **_CHECKPOINT,
        ),
        Method(
            name="w4a16",
            bits=4,
            summary="checkpoint of int4 weights",
            described="the weights of a compressed-tensors checkpoint: int4 weights",
            formats=("pack-quantized",),
            **_CHECKPOINT,
        ),
    )
}
"""Name of a strategy part -> its method. A new one has its bytes in `layer_bytes` below."""

CHECKPOINTS = tuple(name for name, method in METHODS.items() if method.checkpoint)
"""Methods whose weights were quantized before and lie in a folder."""


def scheme_of(text: str) -> Scheme:
    """Read the scheme of a part's text.

    That is `nf4`, `nf4:double`, `int8:0`, `int4wo:128`, `fp8:wo`, `gptq:PATH` and the like. Raises
    UsageError.
    """
    name, colon, argument = text.partition(":")
    if name not in METHODS:
        near = did_you_mean(name, METHODS, otherwise=f"Methods: {', '.join(METHODS)}.")
        raise UsageError(f"quantization {name!r} is not known.{near}")
    if name in CHECKPOINTS:
        return _checkpoint(name, argument)
    if colon:
        return _with_option(name, argument)
    return _default_scheme(name)


def _default_scheme(name: str) -> Scheme:
    return Scheme(method=name, group=METHODS[name].group)


def _checkpoint(name: str, path: str) -> Scheme:
    if not path:
        raise UsageError(
            f"strategy part {name!r} needs the folder of a checkpoint, "
            f"for example '{name}:./model-{name}'."
        )
    return Scheme(method=name, path=path)


def _with_option(name: str, argument: str) -> Scheme:
    known = METHODS[name].argument
    scheme = known.read(_default_scheme(name), argument) if known else None
    if scheme is None:
        takes = known.text if known else "no argument"
        raise UsageError(
            f"strategy part {name!r}: argument {argument!r} is not known. It takes {takes}."
        )
    return scheme


# Bytes


def layer_bytes(
    scheme: Scheme,
    out_features: int,
    in_features: int,
    *,
    layout: str = "",
    float_dtype: str = "bfloat16",
) -> Counter[str]:
    """Return the bytes of one converted layer by storage dtype.

    They are those of its weights, scales, zero points and tables; its bias is not in them. `layout`
    is the format the layer was seen in where a method has several (`Method.formats`), and
    `float_dtype` the dtype its weight had before, in which torchao's int4 layout for a CPU keeps
    its scales.

    Sources: bitsandbytes.functional.quantize_4bit and int8_vectorwise_quant; torchao's Int8Tensor,
    Float8Tensor, Int4TilePackedTo4dTensor.from_hp and Int4OpaqueTensor.from_hp.
    """
    match scheme.method:
        case "int8":
            return _scaled_rows("int8", out_features, in_features)
        case "nf4" | "fp4":
            packed_for_cpu = layout == "packed-for-cpu"
            return _four_bit(
                out_features * in_features, double=scheme.double, packed_for_cpu=packed_for_cpu
            )
        case "int8wo":
            # The zero points of symmetric quantization are stored, though all of them are 0.
            return _scaled_rows("int8", out_features, in_features) + Counter(int8=out_features)
        case "fp8":
            return _scaled_rows("float8_e4m3fn", out_features, in_features)
        case "int4wo" if layout == "Int4OpaqueTensor":
            return _int4("uint8", float_dtype, out_features, in_features, scheme.group)
        case "int4wo":
            rows, columns = _multiple(out_features, TILE_ROWS), _multiple(in_features, TILE)
            return _int4("int32", "bfloat16", rows, columns, scheme.group)
    raise ValueError(f"the bytes of {scheme.method!r} follow from its checkpoint's config")


def _scaled_rows(dtype: str, rows: int, columns: int) -> Counter[str]:
    """Return one byte a weight, and a scale a row."""
    return Counter({dtype: rows * columns, "float32": 4 * rows})


def _four_bit(weights: int, *, double: bool, packed_for_cpu: bool) -> Counter[str]:
    """Return two weights a byte, one absmax a block, and the table of 16 values.

    Nested, an absmax takes 8 bits, with a scale and a table of its own.
    """
    blocks = _ceil_div(weights, BITSANDBYTES_BLOCK)
    packed = Counter({"uint8": _ceil_div(weights, 2), "float32": 4 * 16})
    # Bitsandbytes repacks for AVX512-BF16 at the first forward pass, and undoes double
    # quantization.
    if packed_for_cpu:
        return packed + Counter({"bfloat16": 2 * blocks, "float32": 4 if double else 0})
    if not double:
        return packed + Counter({"float32": 4 * blocks})
    absmax_of_absmax = 4 * _ceil_div(blocks, NESTED_BLOCK)
    table_and_mean = 4 * 256 + 4
    return packed + Counter({"uint8": blocks, "float32": absmax_of_absmax + table_and_mean})


def _int4(packed: str, scales: str, rows: int, columns: int, group: int) -> Counter[str]:
    """Return two weights a byte, and a scale and a zero a group."""
    groups = rows * (columns // group)
    return Counter({packed: rows * columns // 2, scales: groups * 2 * _FLOAT_BYTES[scales]})


def _multiple(n: int, divisor: int) -> int:
    """Return the smallest multiple of `divisor` that is at least n."""
    return _ceil_div(n, divisor) * divisor


def _ceil_div(n: int, divisor: int) -> int:
    return -(-n // divisor)


class Packed(Struct, frozen=True, kw_only=True):
    """How a checkpoint stores its quantized layers, from its config.

    `format` is compressed-tensors' name: "pack-quantized" (several weights in an int32) or
    "int-quantized" (one in an int8). `group` weights share a scale, 0 for a whole row. A
    `symmetric` format has no zero points. `inputs` says that inputs are quantized too.
    """

    format: str
    bits: int
    group: int = 0
    symmetric: bool = True
    inputs: bool = False

    def __str__(self) -> str:
        groups = f"groups of {self.group}" if self.group else "rows"
        inputs = "int8 inputs" if self.inputs else "plain inputs"
        return f"{self.bits}-bit weights in {groups}, {inputs} ({self.format})"


def packed_layer_bytes(
    packed: Packed, out_features: int, in_features: int, scale_dtype: str
) -> Counter[str]:
    """Return the bytes of one layer of a checkpoint, as `layer_bytes` does.

    Sources: compressed_tensors.compressors.pack_quantized and naive_quantized.
    """
    groups = _ceil_div(in_features, packed.group) if packed.group else 1
    scales = Counter({scale_dtype: _FLOAT_BYTES[scale_dtype] * out_features * groups})
    if packed.format == "int-quantized":
        zeros = 0 if packed.symmetric else out_features * groups
        return scales + Counter(int8=out_features * in_features + zeros)
    words = out_features * _words(in_features, packed.bits)
    if not packed.symmetric:
        words += _words(out_features, packed.bits) * groups
    return scales + Counter(int32=4 * words, int64=_SHAPE_BYTES)


def _words(n: int, bits: int) -> int:
    """Return how many int32 hold n values of so many bits."""
    return _ceil_div(n * bits, _WORD_BITS)


_WORD_BITS = 32
_SHAPE_BYTES = 2 * 8
_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
