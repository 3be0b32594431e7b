"""The file of a reference, which the transformers engine writes.

Each engine that is compared reads it. Imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open

from pytest_llmperf.errors import WorkerError

FORMAT = "pytest-llmperf reference 2"
_NOT_OURS = (KeyError, IndexError, TypeError, ValueError, RecursionError)
"""What a file of another content under our name raises."""


@dataclass(frozen=True)
class Rounding:
    """How far the reference's own logits move when it computes in bfloat16.

    `noise` is the power of the error over that of the logits; `kl` is in nats a token.
    """

    noise: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class ReferenceFile:
    """All but the logits [prompts, positions, vocabulary], which are read a prompt at a time.

    `rows` are the prompts as ids, without padding; `continuation` [prompts, positions] is an array
    of the framework, of which `counts` says how many positions of each prompt are filled. `ends`
    are the ids that end a sequence; `rounding` is None for a reference that is rounded itself.
    """

    prompts: tuple[str, ...]
    rows: list[list[int]]
    continuation: Any
    logits_dtype: str
    vocab_size: int
    counts: tuple[int, ...]
    parts: tuple[str, ...]
    ends: tuple[int, ...]
    rounding: Rounding | None

    @property
    def rounding_noise(self) -> float | None:
        """The noise of the reference's rounding, where it was measured."""
        return None if self.rounding is None else self.rounding.noise

    @property
    def rounding_kl(self) -> float | None:
        """The divergence of the reference's rounding, where it was measured."""
        return None if self.rounding is None else self.rounding.kl

    @classmethod
    def read(cls, path: str, framework: str) -> ReferenceFile:
        """Read all but the logits as arrays of a framework, "pt" or "np".

        Raises WorkerError when the file is missing or not a reference.
        """
        try:
            with safe_open(path, framework=framework) as file:
                metadata = _checked_metadata(path, file)
                return cls(
                    prompts=tuple(json.loads(metadata["prompts"])),
                    rows=_unpadded(file.get_tensor("prompt_ids"), file.get_tensor("lengths")),
                    continuation=file.get_tensor("continuation"),
                    logits_dtype=metadata["logits_dtype"],
                    counts=tuple(file.get_tensor("counts").tolist()),
                    parts=tuple(json.loads(metadata["parts"])),
                    ends=tuple(json.loads(metadata["ends"])),
                    rounding=_rounding(json.loads(metadata["rounding"])),
                    vocab_size=file.get_slice("logits").get_shape()[-1],
                )
        except (OSError, SafetensorError, *_NOT_OURS) as error:
            raise WorkerError(
                f"reference file {path} cannot be read: {error}. Delete it; it is made again."
            ) from error


def _rounding(numbers: list[float] | None) -> Rounding | None:
    return None if numbers is None else Rounding(*numbers)


def _checked_metadata(path: str, file: Any) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    found_format = metadata.get("format")
    if found_format != FORMAT:
        raise WorkerError(
            f"{path} holds {found_format!r}, {FORMAT!r} is needed. Delete it; it is made again."
        )
    return metadata


def _unpadded(ids: Any, lengths: Any) -> list[list[int]]:
    """Return the rows of left-padded ids [prompts, width] without their padding."""
    pairs = zip(ids.tolist(), lengths.tolist(), strict=True)
    return [row[len(row) - n :] for row, n in pairs]
