"""The scripted engine does exactly what its script says.

Others can be checked against numbers that are computed by hand.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmperf import strategies
from pytest_llmperf.engines.scripted.options import Fault, ScriptedOptions, parse
from pytest_llmperf.errors import LoadError, UsageError, WorkerError
from pytest_llmperf.testing import ScriptedEngine, VirtualClock, scripted_plan
from pytest_llmperf.units import KB, MB
from pytest_llmperf.workloads import Decode, Prefill, PromptSet

WORK = Decode(batch=2, prompt_tokens=8, new_tokens=4)
MS = 1_000_000


def session(script="", **plan):
    return ScriptedEngine().open(scripted_plan(script, **plan))


def relative_ns(ran):
    request = ran.trace.requests[0]
    return [event.t_ns - request.t_due_ns for event in request.events]


def test_token_times_are_the_scripts_to_the_nanosecond():
    """TTFT 50 ms, TPOT 10 ms: 50, 60, 70, 80 ms after the request, for every sequence."""
    ran = session("ttft=50ms,tpot=10ms").run(WORK, 0)
    assert relative_ns(ran) == [50 * MS, 60 * MS, 70 * MS, 80 * MS]
    assert len(ran.trace.requests) == 2
    assert ran.trace.requests[0] == ran.trace.requests[1]


def test_prefill_ends_with_its_first_token():
    """One event."""
    assert relative_ns(session("ttft=7ms").run(Prefill(batch=1, prompt_tokens=8), 0)) == [7 * MS]


def test_the_clock_is_virtual_and_shared_between_sessions():
    """Loading and runs take the script's time on the clock that was given, and none in reality."""
    clock = VirtualClock()
    engine = ScriptedEngine(clock)
    engine.open(scripted_plan("load=1000s,ttft=50ms,tpot=10ms")).run(WORK, 0)
    assert clock.now_ns == 1_000_000 * MS + 1 * MS + 80 * MS
    engine.open(scripted_plan("load=5min"))
    assert clock.monotonic() == pytest.approx(1300.081)


def test_a_clock_does_not_go_back():
    """Negative durations are refused."""
    with pytest.raises(ValueError, match="cannot go back by 5 ns"):
        VirtualClock().advance_ns(-5)


@pytest.mark.parametrize(
    ("script", "factors"),
    [
        ("warmup=2", [2, 2, 1, 1]),
        ("fault=slow@run3", [1, 1, 10, 1]),
        ("fault=unstable@run", [1.1, 1.2, 1.3, 1.4]),
    ],
)
def test_runs_slow_down_as_the_script_says(script, factors):
    """Warm-up, one outlier, and a run that never becomes stable."""
    opened = session(f"ttft=50ms,{script}")
    assert [relative_ns(opened.run(WORK, i))[0] / (50 * MS) for i in range(4)] == pytest.approx(
        factors
    )


def test_noise_has_the_scripts_spread_and_comes_again_with_its_seed():
    """Log-normal with a standard deviation of 5 %.

    The same seed, strategy and runs give the same times.
    """

    def times(script):
        opened = session(script)
        return [relative_ns(opened.run(WORK, i))[0] for i in range(400)]

    logs = [math.log(t / (50 * MS)) for t in times("ttft=50ms,noise=0.05,seed=1")]
    mean = sum(logs) / len(logs)
    assert abs(mean) < 0.01
    assert 0.045 < math.sqrt(sum((x - mean) ** 2 for x in logs) / len(logs)) < 0.055
    assert times("noise=0.05,seed=1") == times("noise=0.05,seed=1") != times("noise=0.05,seed=2")


@pytest.mark.parametrize(
    ("dtype", "weights"), [("float32", 100 * MB), ("bfloat16", 50 * MB), ("auto", 100 * MB)]
)
def test_memory_follows_the_dtype_in_effect(dtype, weights):
    """Weights by dtype, 2 sequences of 12 positions of 1 KB, 10 MB of activations; 2 MiB steps."""
    script = "weights=100MB,kv=1KB,activations=10MB"
    memory = session(script, weights_dtype=dtype).read_memory(WORK, 0)
    assert (memory.weights, memory.kv_cache, memory.peak) == (
        weights,
        24 * KB,
        weights + 24 * KB + 10 * MB,
    )
    assert memory.reserved % 2**21 == 0
    assert 0 <= memory.reserved - memory.peak < 2**21
    assert memory.device is None
    assert memory.reasons["device"]


def test_a_lie_loads_something_else_than_was_asked():
    """It claims bf16 and loads float32: weights take 4 bytes, and describe() tells the truth."""
    opened = session(
        "weights=100MB,lie=weights_dtype:float32", strategy="bf16", weights_dtype="bfloat16"
    )
    assert opened.opened().effective.parameter_bytes_by_dtype == {"float32": 100 * MB}


def test_a_lie_about_a_field_of_the_description_is_told_as_it_is():
    """Fields of Effective that no plan sets; `none` is None and digits are a number."""
    effective = (
        session("lie=attention:none,lie=ranks:3,fault=right_padding@open").opened().effective
    )
    assert (effective.attention, effective.ranks, effective.padding_side) == (None, 3, "right")


def test_the_cache_and_the_graphs_are_those_of_the_last_run():
    """Unknown before any run, as with a real engine."""
    from msgspec.structs import replace

    opened = ScriptedEngine().open(replace(scripted_plan(), cache="static", compile="max-autotune"))
    before = opened.describe().effective
    opened.run(WORK, 0)
    after = opened.describe().effective
    assert (before.cache, before.compile_mode, before.compiled_graphs) == ("", None, 0)
    assert (after.cache, after.compile_mode, after.compiled_graphs) == (
        "StaticCache",
        "max-autotune",
        1,
    )


def test_energy_is_power_times_the_repetitions_that_fill_the_time():
    """50 + 3 x 10 ms a repetition; 13 of them fill 1 s; 2 x 4 tokens each, at 100 W."""
    energy = session("ttft=50ms,tpot=10ms,power=100W").read_energy(WORK, 0, 1.0)
    assert energy.joules == pytest.approx(13 * 0.08 * 100)
    assert energy.n_output_tokens == 13 * 8
    assert session("power=none").read_energy(WORK, 0, 1.0).reason


@pytest.fixture
def reference(tmp_path):
    """Ten prompts of ten positions, written by a perfect model."""
    path = str(tmp_path / "reference")
    prompts = PromptSet(name="ten", texts=tuple(f"prompt {i}" for i in range(10)))
    assert session().make_reference(prompts, 10, 4, path) == (10, 100)
    return path


def agreement(script, path, batch=4):
    rows = session(script).compare_reference(path, batch)
    flat = {
        name: [v for row in rows for v in getattr(row, name)]
        for name in ("top1", "kl", "reference_logprob", "candidate_logprob")
    }
    pairs = zip(flat["reference_logprob"], flat["candidate_logprob"], strict=True)
    loss = sum(ref - cand for ref, cand in pairs) / len(flat["top1"])
    ratio = sum(row.noise for row in rows) / sum(row.signal for row in rows)
    return {
        "top1": sum(flat["top1"]) / len(flat["top1"]),
        "kl": sum(flat["kl"]) / len(flat["kl"]),
        "ppl": math.exp(loss),
        "sqnr": -10 * math.log10(ratio) if ratio else math.inf,
        "diverged": [row.index for row in rows if row.first_divergence is not None],
    }


def test_a_perfect_candidate_agrees_exactly(reference):
    """No disagreement anywhere, and no divergence."""
    assert agreement("", reference) == {
        "top1": 1,
        "kl": 0,
        "ppl": 1,
        "sqnr": math.inf,
        "diverged": [],
    }


def test_quality_is_the_share_of_positions_that_agree(reference):
    """97 of 100 positions: KL 0.03, perplexity e^0.03, SQNR 15.2 dB; three prompts diverge."""
    found = agreement("quality=0.97", reference)
    assert (found["top1"], len(found["diverged"])) == (0.97, 3)
    assert (found["kl"], found["ppl"], found["sqnr"]) == pytest.approx(
        (0.03, math.exp(0.03), -10 * math.log10(0.03))
    )


def test_each_quantity_can_be_set_alone(reference):
    """A small KL, a perplexity ratio and an SQNR, with every token equal."""
    found = agreement("kl=0.002,perplexity=1.02,sqnr=45", reference)
    assert found["top1"] == 1
    assert (found["kl"], found["ppl"], found["sqnr"]) == pytest.approx((0.002, 1.02, 45))


def test_another_batch_shape_may_have_a_quality_of_its_own(reference):
    """What the noise-floor mode needs: the reference against itself at the candidate's batch."""
    assert agreement("batch_quality=0.9", reference, batch=4)["top1"] == 1
    assert agreement("batch_quality=0.9", reference, batch=1)["top1"] == 0.9


def test_a_diverging_row_says_where_and_at_which_rank(reference):
    """The first wrong position, the ranks there, and the worst position with both lists of five."""
    row = session("quality=0,rank=7").compare_reference(reference, 4)[0]
    assert (
        row.first_divergence,
        row.candidate_rank_in_reference,
        row.reference_rank_in_candidate,
    ) == (0, 7, 7)
    assert not any(row.top5)
    assert row.worst.reference_top5[0].token_id == row.worst.candidate_top5[1].token_id
    assert row.reference_text != row.candidate_text


def test_next_tokens_follow_from_the_ids_and_a_text_has_one_id_a_character():
    """The same model gives the same tokens after a text and after its ids.

    K of them, the likeliest first.
    """
    top = session("").top_tokens("ab", 3)
    assert top.prompt_ids == (97, 98)
    assert top == session("").top_tokens((97, 98), 3)
    assert top.ids == tuple((top.first.token_id + i) % 1000 for i in range(3))
    assert top.first in session("").top_tokens("ab", 1)
    assert top.first not in session("").top_tokens("ac", 3)


def test_a_model_goes_astray_after_prompts_that_hold_an_id():
    """And after no other."""
    assert session("astray=98").top_tokens("ab", 1) != session("").top_tokens("ab", 1)
    assert session("astray=98").top_tokens("ac", 1) == session("").top_tokens("ac", 1)


@pytest.mark.parametrize("prompt", ["", (), (1000,), (-1,)])
def test_a_prompt_that_the_scripted_model_cannot_take_is_an_error(prompt):
    """As with a real one."""
    with pytest.raises(
        UsageError, match=r"no prompt token|not in the vocabulary: ids are 0 to 999"
    ):
        session("").top_tokens(prompt, 1)


@pytest.mark.parametrize("content", [None, b"junk", b'{"format":"other","batch":1,"prompts":[]}'])
def test_a_reference_that_is_missing_or_broken_is_a_load_error(tmp_path, content):
    """The file is named, with what to do."""
    path = tmp_path / "reference"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="Remove it and it is made again"):
        session().compare_reference(str(path), 1)


def test_overrides_hold_under_their_strategy_alone():
    """All parts before the slash must be in the strategy.

    The more special one wins, wherever it stands.
    """
    script = "bf16+compile/tpot=1ms,bf16/tpot=5ms,tpot=10ms,bf16/fault=die@run"
    assert parse(script, "fp32") == ScriptedOptions(tpot_s=0.01)
    assert parse(script, "bf16") == ScriptedOptions(
        tpot_s=0.005, faults=(Fault(kind="die", place="run"),)
    )
    assert parse(script, "bf16+compile").tpot_s == 0.001
    assert parse(script, "bf16-mixed").tpot_s == 0.01


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("tpott=5ms", "Did you mean 'tpot'"),
        ("ttft", "has no value"),
        ("ttft=5", "one of the units ns, us, ms, s, min"),
        ("weights=5mb", "one of the units B, KB"),
        ("quality=1.1", "between 0 and 1"),
        ("warmup=-1", "at least 0"),
        ("noise=x", "noise='x'"),
        ("fault=dye@run", "Did you mean 'die'"),
        ("fault=die@runs", "Did you mean 'run'"),
        ("fault=die", "kind@place is needed"),
        ("lie=weights_dtype", "field:value is needed"),
        ("lie=weight_dtype:float32", "Did you mean 'weights_dtype'"),
        ("lie=weights_dtype:float31", "known are float32"),
        ("fp32/tpott=5ms", "Did you mean 'tpot'"),
        ("bf16/tpott=5ms", "Did you mean 'tpot'"),
    ],
)
def test_a_script_that_cannot_be_followed_is_an_error(script, reason):
    """Named with the nearest known word, under every strategy."""
    with pytest.raises(UsageError, match=reason):
        session(script)


@given(ms=st.integers(1, 10**6), megabytes=st.integers(1, 10**6), seed=st.integers())
def test_options_mean_what_they_say(ms, megabytes, seed):
    """Times in seconds, sizes in bytes."""
    found = parse(f"ttft={ms}ms,weights={megabytes}MB,seed={seed}", "fp32")
    assert found == ScriptedOptions(ttft_s=ms * 1e-3, weights_bytes=megabytes * MB, seed=seed)


def test_a_batch_that_the_replicas_cannot_share_is_an_error_as_in_the_real_engine():
    """dp2 gives each replica its rows of a batch of two, and of a batch of one none."""
    opened = ScriptedEngine().open(strategies.parse("dp2").apply(scripted_plan()))
    assert len(opened.run(WORK, 0).trace.requests) == 1
    with pytest.raises(
        UsageError, match=r"a batch of 1 cannot be divided over the 2 replicas of dp2.*batch=2"
    ):
        opened.run(Decode(batch=1, prompt_tokens=8, new_tokens=4), 1)


def test_a_closed_session_answers_nothing():
    """Every call after close is an error."""
    opened = session()
    opened.close()
    with pytest.raises(WorkerError, match="closed"):
        opened.run(WORK, 0)


def test_a_model_of_another_kind_is_refused():
    """The engine runs scripts only."""
    from msgspec.structs import replace

    plan = scripted_plan()
    with pytest.raises(UsageError, match="scripted:"):
        ScriptedEngine().open(replace(plan, model=replace(plan.model, kind="hub", name="gpt2")))


def test_a_lie_about_a_run_holds_after_the_run():
    """What runs alone show can be lied about, too."""
    opened = session("lie=cache:static,lie=batching:continuous")
    opened.run(WORK, 0)
    effective = opened.describe().effective
    assert (effective.cache, effective.batching) == ("static", "continuous")
