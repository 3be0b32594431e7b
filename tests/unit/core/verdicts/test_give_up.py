"""Sampling is given up where nothing could be decided, and where something could it goes on."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from noise import autocorrelated, normal, t3, wild

from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.trace import RequestTrace, TokenEvent, Trace
from pytest_llmperf.core.verdicts import give_up, stats
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.core.verdicts.judge import decide
from pytest_llmperf.session.sampling import Goal, Side, sample

BUDGET_N = 60
NEEDED = 0.1

Noise = Callable[[int, random.Random], list[float]]


WILD = [10.0**power for power in (-3, 3, -2, 2, -3, 3, -2, 2, -3, 3)]
CALM = [1.0, 1.02] * 5


def test_hopeless_sampling_is_given_up_in_one_sentence():
    sentence = give_up.of_samples(WILD, spent_s=5, budget_s=20)
    assert sentence.startswith("given up after 5 s of 20 s: at this noise")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("values", "spent_s", "why"),
    [
        (WILD[:9], 5, "there are too few samples"),
        (WILD, 2, "it is too early to look"),
        (CALM, 5, "it is narrow"),
        (WILD, 20, "the budget has ended anyway"),
    ],
)
def test_what_is_not_given_up(values, spent_s, why):
    assert give_up.of_samples(values, spent_s=spent_s, budget_s=20) == "", why


def test_what_is_needed_follows_from_the_claims_of_the_last_session():
    """A claim that held by 60 % needs no narrower interval; one that barely held may fail now."""
    assert give_up.needed([]) == give_up.USELESS
    assert give_up.needed([0.47, -0.2]) == 0.47
    assert give_up.needed([0.01]) == give_up.LEAST_NEEDED
    assert give_up.needed([math.inf]) == give_up.USELESS


def test_a_close_claim_on_a_noisy_machine_is_given_up_and_a_clear_one_is_not():
    draw = random.Random(0)
    noisy = [math.exp(draw.gauss(0, 0.8)) for _ in range(12)]
    assert give_up.of_samples(noisy, spent_s=10, budget_s=20, needed=give_up.needed([0.01]))
    assert not give_up.of_samples(noisy, spent_s=10, budget_s=20, needed=give_up.needed([0.7]))


def test_a_claim_that_is_out_of_reach_names_the_machine_and_no_huge_number():
    rates = tuple(random.Random(0).sample(range(10, 40), 30))
    noisy = Estimate.of_samples("throughput", rates, "tok/s", direction="higher")
    detail = decide(">=", noisy, 23).detail
    assert "this machine is too noisy for this claim" in detail
    assert "would decide" not in detail
    near = decide(">=", noisy, 20).detail
    assert "more samples would decide" in near


def two_modes(n: int, draw: random.Random) -> list[float]:
    """Stretches of a fast and a slow mode, 3 standard deviations apart."""
    mode, values = 0.0, []
    for _ in range(n):
        mode = 3.0 - mode if draw.random() < 0.1 else mode
        values.append(draw.gauss(mode, 1))
    return values


def drifting(n: int, draw: random.Random) -> list[float]:
    """As far from its start to its end as two standard deviations."""
    return [draw.gauss(2 * at / n, 1) for at in range(n)]


def falling_noise(n: int, draw: random.Random) -> list[float]:
    """Four times as noisy in the first quarter as after it: a program that is still starting."""
    return [draw.gauss(0, 4 if at < n / 4 else 1) for at in range(n)]


NOISES: dict[str, Noise] = {
    "normal": normal,
    "heavy tails": t3,
    "outliers": wild,
    "autocorrelated 0.5": autocorrelated(0.5),
    "autocorrelated 0.7": autocorrelated(0.7),
    "two modes": two_modes,
    "drift": drifting,
}


def given_up_and_final(
    noise: Noise, spread: float, draw: random.Random, margin: float
) -> tuple[bool, float]:
    """Return whether a run was given up, and how wide it would have been with its whole budget."""
    values = [math.exp(spread * x) for x in noise(BUDGET_N, draw)]
    low, high = stats.center_interval(values)
    final = math.log(high / low) / 2
    needed = margin / give_up.MARGIN * NEEDED
    given_up = any(
        give_up.of_samples(values[:n], spent_s=n, budget_s=BUDGET_N, needed=needed)
        for n in range(10, BUDGET_N)
    )
    return given_up, final


def counts(noise: Noise, margin: float, runs: int = 300) -> tuple[int, int]:
    """Return how many runs were given up, and how many of them would have ended narrow enough."""
    draw, n_given_up, n_wrong = random.Random(0), 0, 0
    for spread in (0.05, 0.2, 0.4, 0.6, 1.0):
        for _ in range(runs // 5):
            given_up, final = given_up_and_final(noise, spread, draw, margin)
            n_given_up += given_up
            n_wrong += given_up and final <= NEEDED
    return n_given_up, n_wrong


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_what_is_given_up_would_not_have_ended_narrow(noise):
    n_given_up, n_wrong = counts(noise, give_up.MARGIN)
    assert n_given_up > 0
    assert n_wrong == 0


def test_without_the_margin_runs_are_given_up_that_would_have_ended_narrow():
    """The control: the forecast alone is wrong often."""
    wrong = sum(counts(noise, 0.7)[1] for noise in NOISES.values())
    assert wrong > 10


# In the loop that samples


def side(seconds: Callable[[int], float]) -> Side:
    def repeat(number: int) -> TimedRun:
        events = (TokenEvent(1), TokenEvent(round(seconds(number) * 1e9)))
        request = RequestTrace(n_prompt_tokens=1, t_due_ns=0, events=events)
        return TimedRun(trace=Trace(repetition=number, requests=(request,)), step=None)

    return Side(name="bf16", repeat=repeat)


def show(*_: object) -> None:
    """Show nothing."""


def test_sampling_stops_early_and_keeps_what_it_has():
    """Repetitions differ by 80 %, and the claim of the last session held by 1 %."""
    draw = random.Random(0)
    wildly = side(lambda _: math.exp(draw.gauss(0, 0.8)))
    needed = give_up.needed([0.01])
    sample([wildly], Goal(precision=0.01, budget_s=60.0, needed=needed), show)
    spent_s = sum(ran.trace.requests[0].events[-1].t_ns for ran in wildly.runs) / 1e9
    assert wildly.given_up.startswith("given up after")
    assert len(wildly.runs) >= 10
    assert spent_s < 30


def test_an_ordinary_noisy_run_gets_its_whole_budget():
    draw = random.Random(0)
    noisy = side(lambda _: math.exp(draw.gauss(0, 0.3)))
    sample([noisy], Goal(precision=0.01, budget_s=60.0), show)
    assert noisy.given_up == ""
    assert len(noisy.runs) > 40
