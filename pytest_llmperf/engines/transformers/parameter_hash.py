"""The hash of the parameters that a factory returned, which says which model was measured.

It is a SHA-256 of all bytes, one thread's work: 5 s for 2.7 GB on an H200's host, in each fresh
process. A GPU reads these bytes in a millisecond, so a fingerprint that it makes is looked up
first, and the SHA-256 is made once for each fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor, nn

from pytest_llmperf.engines.models.content import cached_hash

_WORD_BYTES = 8
_CHUNK_WORDS = 1 << 22
# Odd constants of splitmix64 and of xxHash, as signed 64-bit integers: products wrap around.
_STEPS = (-7046029254386353131, -4417276706812531889)
_MIXERS = (-4658895280553007687, -7723592293110705685)
_SHIFT = 31


def parameters_hash(model: nn.Module) -> str:
    """Return the SHA-256 of names, dtypes and bytes of the parameters, as 64 hexadecimal digits."""
    parameters = sorted(model.named_parameters())
    if not all(parameter.is_cuda for _, parameter in parameters):
        return _sha256(parameters)
    return cached_hash(f"parameters-{_fingerprint(parameters)}", lambda: _sha256(parameters))


def _sha256(parameters: list[tuple[str, nn.Parameter]]) -> str:
    digest = hashlib.sha256()
    for name, parameter in parameters:
        digest.update(_kind(name, parameter).encode())
        digest.update(_values_as_bytes(parameter))
    return digest.hexdigest()


def _kind(name: str, parameter: Tensor) -> str:
    return f"{name} {parameter.dtype} {tuple(parameter.shape)}"


def _values_as_bytes(parameter: Tensor) -> bytes:
    values = parameter.detach().cpu().contiguous().flatten()
    return values.view(torch.uint8).numpy().tobytes()


def _fingerprint(parameters: list[tuple[str, nn.Parameter]]) -> str:
    """Return a hash of names, dtypes and 128 bits a parameter that its device makes."""
    kinds = [_kind(name, parameter) for name, parameter in parameters]
    sums = [fingerprint(parameter) for _, parameter in parameters]
    numbers = torch.stack(sums).tolist() if sums else []
    return hashlib.sha256(repr(list(zip(kinds, numbers, strict=True))).encode()).hexdigest()


def fingerprint(parameter: Tensor) -> Tensor:
    """Return two sums over the words of a tensor, each word times a number of its place: [2] int64.

    One changed word always changes both; any other change goes unseen once in 2^128 by chance.
    """
    totals = torch.zeros(2, dtype=torch.int64, device=parameter.device)
    for start, words in _words(parameter):
        places = torch.arange(start + 1, start + 1 + len(words), device=words.device)
        for index, (step, mixer) in enumerate(zip(_STEPS, _MIXERS, strict=True)):
            weights = places * step
            weights ^= weights >> _SHIFT
            weights *= mixer
            weights |= 1
            totals[index] += (words * weights).sum()
    return totals


def _words(parameter: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the tensor's bytes as int64 in chunks, each with the number of its first word."""
    contiguous = parameter.detach().contiguous().flatten()
    is_aligned = contiguous.storage_offset() * contiguous.element_size() % _WORD_BYTES == 0
    values = (contiguous if is_aligned else contiguous.clone()).view(torch.uint8)
    whole = len(values) // _WORD_BYTES * _WORD_BYTES
    rest = values[whole:]
    words = values[:whole].view(torch.int64)
    chunks = torch.split(words, _CHUNK_WORDS) if len(words) else ()
    yield from zip(count(0, _CHUNK_WORDS), chunks, strict=False)
    if len(rest):
        last = torch.zeros(_WORD_BYTES, dtype=torch.uint8, device=values.device)
        last[: len(rest)] = rest
        yield len(words), last.view(torch.int64)
