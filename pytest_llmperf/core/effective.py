"""What is really loaded, as the worker describes it, and what a strategy promised. Comparing the two is pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct


class TensorGroup(Struct, frozen=True, kw_only=True):
    """Parameters or buffers that share dtype and device. Tensor subclasses are counted by their inner storage.

    `kept`: the architecture itself keeps these in this dtype whatever is asked for (norms in float32, for example).
    """

    kind: str
    dtype: str
    device: str
    tensors: int
    elements: int
    bytes: int
    kept: bool = False


class LinearGroup(Struct, frozen=True, kw_only=True):
    """Linear layers that share a class and a storage dtype. `elements` counts logical weights, `bytes` what they occupy."""

    cls: str
    dtype: str
    layers: int
    elements: int
    bytes: int


class Effective(Struct, frozen=True, kw_only=True):
    """What one worker holds and does.

    `compute_dtype` is observed (output dtype of a linear layer in a probe forward), not read from a config.
    `cache` and `compiled_graphs` are observed in the last run; before any run they are "" and 0.
    """

    engine: str
    model_class: str
    tensors: tuple[TensorGroup, ...]
    linears: tuple[LinearGroup, ...]
    compute_dtype: str
    autocast_dtype: str | None
    checkpoint_dtype: str | None
    attention: str
    cache: str
    compile_mode: str | None
    compiled_graphs: int
    decode_loop: str
    padding_side: str
    device: str
    ranks: int = 1
    adapters: tuple[str, ...] = ()
    sparsity: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> int:
        """Bytes of parameters and buffers as they lie on the device."""
        return sum(t.bytes for t in self.tensors)

    @property
    def parameter_bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of parameters for each storage dtype."""
        out: dict[str, int] = {}
        for t in self.tensors:
            if t.kind == "parameter":
                out[t.dtype] = out.get(t.dtype, 0) + t.bytes
        return out


@dataclass(frozen=True)
class Promise:
    """One thing a strategy part (`part`, its name) promises. `broken` returns None when it holds, else a reason with counts.

    `when` is "loaded" (checked after loading) or "warm" (checked after warm-up: compilation, cache in use).
    """

    text: str
    broken: Callable[[Effective], str | None]
    when: str = "loaded"
    part: str = ""
