"""What decoding a batch gives, and what a loop that decodes is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from pytest_llmperf.engines.outputs.inputs import TokenBatch


@dataclass(frozen=True)
class AssistedBy:
    """What an assistant did in one run.

    `forwards` are those of the measured model, `proposed` the tokens proposed to it, and
    `bytes_read` what was read for proposing them.
    """

    source: str
    forwards: int
    proposed: int
    bytes_read: int = 0


@dataclass(frozen=True)
class Decoded:
    """One batch decoded.

    `tokens` is [batch, n] on the host; `t_tokens_ns[i]` is when arrival i of every sequence was
    there. `arrivals` are the tokens of a sequence that came at each of these times; empty: one
    each. `assisted` says who proposed them.
    """

    tokens: Tensor
    t_start_ns: int
    t_tokens_ns: tuple[int, ...]
    cache: CacheSeen
    clock: str = "host"
    arrivals: tuple[int, ...] = ()
    assisted: AssistedBy | None = None


class DecodeLoop(Protocol):
    """A way to decode greedily. `name` goes into what is reported as in effect."""

    name: str

    def decode(self, batch: TokenBatch, new_tokens: int) -> Decoded:
        """Decode exactly `new_tokens` tokens for each sequence, end-of-sequence ignored.

        Raises InvalidRun for another length.
        """


@runtime_checkable
class ForcesTokens(Protocol):
    """A loop through which given tokens can be sent in place of those that it would choose."""

    @property
    def unforced(self) -> str:
        """Why no tokens can be forced through this loop; empty where they can."""

    def force(self, batch: TokenBatch, tokens: Tensor) -> Tensor:
        """Return the [batch, n, vocab] float32 logits from which the loop chooses each token.

        `tokens` [batch, n] are fed back one at a time in place of the choices. Everything else is
        as in `decode`: the same cache, step, adapters and ranks.
        """


def autocast(device: torch.device, dtype: str | None) -> AbstractContextManager[object]:
    """Return torch.autocast with this dtype, or a context that does nothing."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


class LayerSeen(NamedTuple):
    """One layer of keys and values: layer `place` of the cache.

    `bytes_per_position` are of one sequence, with scales. `window` is how many positions a token
    sees, its own included; None for all. `key_dim` and `value_dim` are those of one head.
    """

    place: int
    bytes_per_position: int
    key_dim: int
    value_dim: int
    window: int | None = None


@dataclass(frozen=True)
class CacheSeen:
    """The KV cache as it was after a run.

    `kind` is its class, followed by the dtype that it stores where it is quantized; `bytes` are all
    its tensors: keys and values with their scales, and the states of layers that have such.
    `bytes_per_position` are the keys and values of one token of one sequence, and `attention` tells
    them by layer, where that is known. `state_bytes` are the recurrent and convolutional states of
    one sequence, `recurrent_elements` the values of the recurrent ones.
    """

    kind: str
    bytes: int
    bytes_per_position: int
    layers: int
    attention: tuple[LayerSeen, ...] = ()
    state_bytes: int = 0
    recurrent_elements: int = 0


def eager(model: Any) -> Any:
    """Return what runs the forward pass past a compiled graph: `forward`.

    A sharded model is called itself, since the hooks of the call gather its weights.
    """
    return model if isinstance(model, FSDPModule) else model.forward
