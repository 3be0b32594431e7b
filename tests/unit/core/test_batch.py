"""Many prompts at once.

The workload's lengths, what static and continuous batches make of them, and the quantities.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf.core.metrics.offline import reduce
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import RequestTrace, TokenEvent, Trace
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.engines.scripted.batches import schedule
from pytest_llmperf.engines.scripted.loaded import ScriptedEngine
from pytest_llmperf.errors import InvalidRun, NotMeasured, UsageError
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.workloads import Batch, PromptSet, Workload, describe

FOUR = Batch(requests=4, prompt_tokens=10, max_new_tokens=(2, 20), batch=2)


class Fixed(Batch, frozen=True, kw_only=True):
    """A Batch whose lengths are written down."""

    lengths: tuple[int, ...] = (2, 10, 4, 4)

    @property
    def output_lengths(self) -> tuple[int, ...]:
        return self.lengths


def fixed(*lengths: int, batch: int = 2, prompt_tokens: int = 10) -> Fixed:
    return Fixed(requests=len(lengths), prompt_tokens=prompt_tokens, batch=batch, lengths=lengths)


def reduced(trace: Trace, work: Batch):
    return reduce([trace] * 4, work)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_lengths_are_drawn_from_the_seed_inside_the_range(seed, count):
    """Equal for equal seeds; both ends may come."""
    work = Batch(
        prompts=PromptSet.synthetic(seed),
        requests=count,
        prompt_tokens=(3, 9),
        max_new_tokens=(2, 5),
    )
    again = Batch(
        prompts=PromptSet.synthetic(seed),
        requests=count,
        prompt_tokens=(3, 9),
        max_new_tokens=(2, 5),
    )
    assert (work.prompt_lengths, work.output_lengths) == (
        again.prompt_lengths,
        again.output_lengths,
    )
    assert set(work.prompt_lengths) <= set(range(3, 10))
    assert set(work.output_lengths) <= set(range(2, 6))
    assert len(work.output_lengths) == count == work.count
    assert work.new_tokens == max(work.output_lengths)


def test_another_seed_draws_other_lengths():
    """Else a suite would measure one set of lengths only."""
    lengths = {Batch(prompts=PromptSet.synthetic(seed)).output_lengths for seed in range(5)}
    assert len(lengths) == 5


def test_texts_keep_their_own_lengths():
    """Each text is a request, or they are gone through again."""
    texts = PromptSet.bundled("short-chat")
    assert Batch(prompts=texts).count == len(texts.texts)
    assert Batch(prompts=texts, requests=3).prompt_lengths is None
    with pytest.raises(UsageError, match="texts keep their own lengths"):
        Batch(prompts=texts, prompt_tokens=8)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"requests": 0},
        {"requests": True},
        {"max_new_tokens": 1},
        {"max_new_tokens": (8, 4)},
        {"max_new_tokens": (2, 4, 8)},
        {"prompt_tokens": 0},
        {"prompt_tokens": "8"},
        {"prompts": "short-chat"},
    ],
)
def test_an_impossible_value_is_named(wrong):
    """With its field and what was possible."""
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Batch(**wrong)


def test_it_travels_and_is_told_in_a_line():
    """As the other workloads: over the wire, and in tables."""
    for work in (FOUR, Batch(), Batch(prompts=PromptSet.bundled("short-chat"), max_new_tokens=8)):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(work), type=Workload) == work
    assert describe(FOUR) == "batch r4 p10 n2-20 b2"
    assert describe(Batch()) == "batch r16 p16-128 n16-128 b8"
    assert (
        describe(Batch(prompts=PromptSet.bundled("short-chat"), requests=5, max_new_tokens=8))
        == "batch r5 ptext n8 b8"
    )


def test_static_batches_wait_for_their_longest_sequence():
    """TTFT 1 s, TPOT 1 s, batches of two: 10 steps of the first batch, then 4 of the second."""
    done = schedule(fixed(2, 10, 4, 4), 1.0, 1.0, continuous=False)
    assert [each[0] for each in done.times_s] == [1, 1, 11, 11]
    assert [each[-1] for each in done.times_s] == [2, 10, 14, 14]
    assert done.computed == 2 * (10 + 10 - 1) + 2 * (10 + 4 - 1)


def test_continuous_batches_fill_the_place_of_a_sequence_that_is_done():
    """The third starts at 2 s where the first ended, the fourth at 6 s where the third did."""
    done = schedule(fixed(2, 10, 4, 4), 1.0, 1.0, continuous=True)
    assert [each[0] for each in done.times_s] == [1, 1, 3, 7]
    assert max(each[-1] for each in done.times_s) == 10
    assert done.computed == 4 * 10 + 20 - 4


def scripted(work: Batch, *, strategy: str = "fp32", batching: str | None = None):
    plan = msgspec.structs.replace(
        scripted_plan("ttft=1s,tpot=1s,warmup=0", strategy=strategy), batching=batching
    )
    return ScriptedEngine().open(plan).run(work, 0).trace


def test_the_quantities_of_a_batch_are_those_computed_by_hand():
    """20 output and 40 prompt tokens in 14 s, and in 10 s where batches are continuous.

    64 and 56 positions.
    """
    work = fixed(2, 10, 4, 4)
    static, continuous = (
        reduced(scripted(work, batching=batching), work) for batching in (None, "continuous")
    )
    assert float(static.throughput) == pytest.approx(20 / 14)
    assert float(static.total_throughput) == pytest.approx(60 / 14)
    assert float(static.request_throughput) == pytest.approx(4 / 14)
    assert float(static.latency.mean) == pytest.approx((2 + 10 + 14 + 14) / 4)
    assert float(static.padding) == pytest.approx(1 - 56 / 64)
    assert float(continuous.throughput) == pytest.approx(2.0)
    assert float(continuous.padding) == 0
    assert continuous.throughput >= 1.39 * static.throughput


def test_what_waiting_requests_cannot_tell_is_not_measurable():
    """The time to a first token holds other requests' work, so that it is no prefill."""
    found = reduced(scripted(FOUR), FOUR)
    for name in ("prefill_throughput", "decode_throughput", "mbu", "mfu", "prefill_mfu"):
        assert isinstance(getattr(found, name), NotMeasurable)
    with pytest.raises(NotMeasured, match="wait for one another"):
        assert found.prefill_throughput >= 1


def request(n_tokens: int, *, n_prompt: int = 10) -> RequestTrace:
    return RequestTrace(
        n_prompt_tokens=n_prompt,
        t_due_ns=0,
        events=tuple(TokenEvent(10 * (i + 1)) for i in range(n_tokens)),
    )


def test_a_request_with_another_length_is_an_error():
    """Each has a length of its own, and is held to it; a request that is missing is seen too."""
    work = fixed(2, 3)
    assert reduced(Trace(repetition=0, requests=(request(2), request(3))), work).n_requests == 8
    with pytest.raises(InvalidRun, match="request 0 has 3 output tokens, 2 were asked for"):
        reduced(Trace(repetition=0, requests=(request(3), request(2))), work)
    with pytest.raises(InvalidRun, match="1 requests were answered, 2 were asked"):
        reduced(Trace(repetition=0, requests=(request(2),)), work)


def test_fewer_computed_positions_than_needed_are_an_error():
    """The count is wrong then, and so would be the share of padding."""
    work = fixed(2, 3)
    enough = Trace(repetition=0, requests=(request(2), request(3)), computed=23)
    assert float(reduced(enough, work).padding) == 0
    with pytest.raises(InvalidRun, match="22 positions were computed, 23 were needed"):
        reduced(msgspec.structs.replace(enough, computed=22), work)
    unknown = reduced(msgspec.structs.replace(enough, computed=None), work)
    assert isinstance(unknown.padding, NotMeasurable)


def test_continuous_is_a_part_that_must_be_in_effect():
    """The last run says how it batched; before a run nothing is known."""
    from pytest_llmperf.errors import NotInEffect
    from pytest_llmperf.strategies import parse, require_in_effect

    plan: LoadPlan = parse("fp32+continuous").apply(scripted_plan())
    assert plan.batching == "continuous"
    session = ScriptedEngine().open(plan)
    promises = parse("fp32+continuous").promises(plan)
    require_in_effect(session.describe().effective, promises, when="loaded")
    session.run(FOUR, 0)
    require_in_effect(session.describe().effective, promises, when="warm")
    static = ScriptedEngine().open(scripted_plan())
    static.run(FOUR, 0)
    with pytest.raises(
        NotInEffect, match="the last run's batches were static, asked for continuous ones"
    ):
        require_in_effect(static.describe().effective, promises, when="warm")
