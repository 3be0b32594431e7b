"""Agreement with a reference.

Its greedy continuations and logits are made once, cached by content hash, and compared with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

import msgspec

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.core.agreement.agreement import QUANTITIES, Agreement
from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.layers import LayerFigure, Layers, figures
from pytest_llmperf.core.agreement.rules import Rule
from pytest_llmperf.core.agreement.through_the_loop import decode_limit
from pytest_llmperf.core.metrics.quantities import TABLE
from pytest_llmperf.core.metrics.results import metric_value
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import scheme_of
from pytest_llmperf.core.record import MetricValue
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.wire.commands import (
    CompareLayers,
    CompareReference,
    MakeReference,
    WriteLayers,
)
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import PromptSet

FORMAT = 2
PROMPTS_LOOKED_AT = 3
LONGEST_LOOKED_AT = 256
"""Outputs of all layers are kept: 45 MB a prompt of this length for a model of 4096 x 32."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What both models are asked: prompts, continuation length, and prompts in one batch."""

    prompts: PromptSet
    new_tokens: int = 32
    batch: int = 8

    def __str__(self) -> str:
        return f"agreement b{self.batch} n{self.new_tokens}"


def compare(
    candidate: OpenModel,
    reference: LoadPlan,
    open_reference: Callable[[], OpenModel],
    question: Question,
    rule: Rule,
    open_candidate: Callable[[], OpenModel] | None = None,
) -> Agreement:
    """Score `candidate` against the reference's outputs.

    They are taken from the cache when they are there. `open_candidate` gives the candidate again
    when its layers are looked at, after the reference was loaded.
    """
    path = reference_file(candidate, reference, open_reference, question)
    rows = _scored(candidate, path, question.batch)
    floor = (
        _noise_floor(candidate, reference, open_reference, question)
        if rule.needs_noise_floor
        else None
    )
    dtype = candidate.opened.effective.compute_dtype
    return Agreement(
        rows,
        rule=rule,
        same_model=candidate.plan == reference,
        noise_floor=floor,
        subject=candidate.plan.strategy,
        context=_context(candidate, reference, question),
        reference=reference.strategy,
        dtype=dtype,
        decode_limit=decode_limit(candidate.plan, dtype),
        look=lambda: layers_of(rows, path, open_candidate or (lambda: candidate), open_reference),
    )


def layers_of(
    rows: Sequence[PromptComparison],
    path: Path,
    open_candidate: Callable[[], OpenModel],
    open_reference: Callable[[], OpenModel],
) -> Layers:
    """Compare the layers' outputs on the prompts that disagree most, and then inside of one.

    What cannot be looked at is told, and loses nothing that was compared before.
    """
    prompts = _worst_of_ordinary_length(rows)
    dtype = open_candidate().opened.effective.compute_dtype
    file = path.with_name(f"{path.stem}.{os.getpid()}.layers")

    def figures_of(inside: str) -> tuple[LayerFigure, ...]:
        written = open_reference().call(
            WriteLayers(path=str(path), prompts=prompts, dtype=dtype, file=str(file), inside=inside)
        )
        compared = open_candidate().call(
            CompareLayers(path=str(path), prompts=prompts, file=str(file), inside=inside)
        )
        return figures(compared.errors, written.errors)

    try:
        outer = Layers(layers=figures_of(""), dtype=dtype)
        if outer.first is None or not outer.first.name.rpartition(".")[2].isdigit():
            return outer
        return msgspec.structs.replace(outer, inside=figures_of(outer.first.name))
    except LlmperfError as error:
        return Layers(dtype=dtype, reason=str(error))
    finally:
        file.unlink(missing_ok=True)


def _worst_of_ordinary_length(rows: Sequence[PromptComparison]) -> tuple[int, ...]:
    """Return the places of the prompts that disagree most, of those that are not long."""
    short = [row for row in rows if row.n_prompt_tokens <= LONGEST_LOOKED_AT] or rows[:1]
    worst = sorted(short, key=lambda row: sum(row.kl) if row.finite else inf, reverse=True)
    return tuple(row.index for row in worst[:PROMPTS_LOOKED_AT])


def metric_values(agreement: Agreement) -> tuple[MetricValue, ...]:
    """Return the quantities of an agreement as a record keeps them."""
    return tuple(_metric_value(agreement, name) for name in QUANTITIES)


def _metric_value(agreement: Agreement, name: str) -> MetricValue:
    full_name = f"agreement.{name}"
    return metric_value(full_name, TABLE[full_name], getattr(agreement, name))


def _context(candidate: OpenModel, reference: LoadPlan, question: Question) -> str:
    geometry = f"{question.prompts.name}, {question.new_tokens} tokens, batch {question.batch}"
    return f"against {reference.strategy} on {candidate.opened.device_name}; {geometry}"


def reference_file(
    candidate: OpenModel,
    reference: LoadPlan,
    open_reference: Callable[[], OpenModel],
    question: Question,
) -> Path:
    """Return the cached reference, which is made now when it is missing.

    The candidate's content hash stands for the reference's when both name the same model, so that a
    cached reference needs no second model in memory. Raises UsageError where the cache cannot be
    written.
    """
    source = _standing_for(reference, candidate) or open_reference()
    path = _path(source, reference, question)
    if not path.exists():
        _make_folder(path.parent)
        open_reference().call(
            MakeReference(
                prompts=question.prompts,
                new_tokens=question.new_tokens,
                batch=question.batch,
                path=str(path),
            ),
        )
    return path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the cache cannot be written: {error}. Set LLMPERF_CACHE to a folder that can."
        ) from error


def _standing_for(reference: LoadPlan, candidate: OpenModel) -> OpenModel | None:
    """Return `candidate` with the content hash that the reference's weights have.

    Return None where it is not known from the candidate.
    """
    source = _weights_source(reference)
    if _weights_source(candidate.plan) == source:
        return candidate
    plain = msgspec.structs.replace(candidate.plan, adapters=())
    if candidate.opened.base_hash and _weights_source(plain) == source:
        opened = msgspec.structs.replace(candidate.opened, content_hash=candidate.opened.base_hash)
        return dataclasses.replace(candidate, opened=opened)
    return None


def _weights_source(plan: LoadPlan) -> tuple[object, ...]:
    """Return what a plan's weights come from.

    Models that a test holds itself differ in their options alone.
    """
    return plan.model, plan.seed, plan.options, _quantized_checkpoint(plan), plan.adapters


def _quantized_checkpoint(plan: LoadPlan) -> str:
    """Return the path of the checkpoint of quantized weights, empty where none is loaded."""
    return scheme_of(plan.quantization).path if plan.quantization is not None else ""


def _noise_floor(
    candidate: OpenModel,
    reference: LoadPlan,
    open_reference: Callable[[], OpenModel],
    question: Question,
) -> tuple[PromptComparison, ...]:
    """Compare the reference alone in a batch of one with itself at the candidate's batch size."""
    single = msgspec.structs.replace(question, batch=1)
    path = reference_file(candidate, reference, open_reference, single)
    return _scored(open_reference(), path, question.batch)


def _scored(model: OpenModel, path: Path, batch: int) -> tuple[PromptComparison, ...]:
    return model.call(CompareReference(path=str(path), batch=batch)).prompts


def _path(source: OpenModel, reference: LoadPlan, question: Question) -> Path:
    identity = {
        "format": FORMAT,
        "content": source.opened.content_hash,
        "beside": source.opened.reference_key,
        "plan": msgspec.to_builtins(reference),
        "prompts": question.prompts.content_hash,
        "new_tokens": question.new_tokens,
        "batch": question.batch,
        "device": source.opened.device_name,
        "versions": source.opened.versions,
    }
    key = hashlib.sha256(msgspec.json.encode(identity, order="sorted")).hexdigest()[:24]
    return cache_dir() / "references" / f"{key}.ref"
