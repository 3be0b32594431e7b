"""The file of a reference: written by the transformers engine, read by each engine that is compared. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError, safe_open

from pytest_llmperf.errors import WorkerError

FORMAT = "pytest-llmperf reference 1"


@dataclass(frozen=True, kw_only=True)
class ReferenceFile:
    """All but the logits [prompts, positions, vocabulary], which are read a prompt at a time.

    `rows` are the prompts as ids, without padding; `continuation` [prompts, positions] is an array
    of the framework.
    """

    prompts: tuple[str, ...]
    rows: list[list[int]]
    continuation: Any
    logits_dtype: str
    vocab_size: int

    @classmethod
    def read(cls, path: str, framework: str) -> ReferenceFile:
        """`framework` is "pt" or "np".

        Raises WorkerError when the file is missing or not a reference.
        """
        try:
            with safe_open(path, framework=framework) as file:
                said = file.metadata() or {}
                if said.get("format") != FORMAT:
                    raise WorkerError(
                        f"{path} holds {said.get('format')!r}, {FORMAT!r} is needed. Delete it; it is made again."
                    )
                ids, lengths = (
                    file.get_tensor("prompt_ids").tolist(),
                    file.get_tensor("lengths").tolist(),
                )
                continuation, shape = (
                    file.get_tensor("continuation"),
                    file.get_slice("logits").get_shape(),
                )
        except (OSError, SafetensorError) as error:
            raise WorkerError(
                f"reference file {path} cannot be read: {error}. Delete it; it is made again."
            ) from error
        return cls(
            prompts=tuple(json.loads(said["prompts"])),
            rows=[row[len(row) - n :] for row, n in zip(ids, lengths, strict=True)],
            continuation=continuation,
            logits_dtype=said["logits_dtype"],
            vocab_size=shape[-1],
        )
