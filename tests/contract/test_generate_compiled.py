"""torch.compile in the decode loops: that it happened, and that it changed no token."""

from __future__ import annotations

import signal

import pytest
import torch
from support.generating import CPU, ROWS, batch, loaded, plan, tiny_llama
from torch._inductor import async_compile
from torch._inductor.compile_worker.subproc_pool import SubprocPool

from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.engines.transformers.compiling import (
    compile_options,
    end_compilers,
    parse_knobs,
)
from pytest_llmperf.engines.transformers.generate import GenerateLoop
from pytest_llmperf.engines.transformers.static_loop import StaticLoop
from pytest_llmperf.errors import UsageError
from pytest_llmperf.instruments.compiled import graphs_compiled
from pytest_llmperf.workloads import Decode, Prefill

# torch's own, on its first compilation.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
STATIC = {"cache": "static", "compile": "default"}


def test_the_compiled_static_loop_gives_the_tokens_of_generate_from_one_graph_a_shape():
    model = tiny_llama(layers=1)
    expected = GenerateLoop(model, plan(), 0).decode(batch(), 20).tokens
    asked = plan(**STATIC)
    loop = StaticLoop(model, asked, CPU, compile_options(asked, CPU, static=True))
    before = graphs_compiled()
    assert torch.equal(loop.decode(batch(), 20).tokens, expected)
    assert graphs_compiled() == before + 1
    assert torch.equal(loop.decode(batch(), 20).tokens, expected)
    assert graphs_compiled() == before + 1, "the second run compiles nothing"


def test_a_session_proves_that_decode_and_prefill_were_compiled():
    session = TransformersModel(loaded(tiny_llama(layers=1), **STATIC))
    session.run(Prefill(batch=1, prompt_tokens=8), 0)
    prefill = session.describe().effective
    assert prefill.compiled_graphs == 1
    session.run(Decode(batch=1, prompt_tokens=8, new_tokens=4), 1)
    decode = session.describe().effective
    assert (decode.compile_mode, decode.compiled_graphs, decode.cache) == (
        "default",
        2,
        "StaticCache",
    )
    assert decode.decode_loop.startswith("static-cache loop")
    assert decode.compiled_share == 1.0


@pytest.mark.nightly
def test_compile_with_a_dynamic_cache_goes_through_generate():
    expected = GenerateLoop(tiny_llama(layers=1), plan(), 0).decode(batch(ROWS[:1]), 6).tokens
    model = tiny_llama(layers=1)
    session = TransformersModel(loaded(model, compile="default"))
    assert session.opened().effective.compiled_graphs == 0
    session.run(Decode(batch=1, prompt_tokens=7, new_tokens=6), 0)
    effective = session.describe().effective
    assert effective.compiled_graphs >= 1
    assert effective.cache == "DynamicCache"
    assert torch.equal(GenerateLoop(model, plan(), 0).decode(batch(ROWS[:1]), 6).tokens, expected)


def test_knobs_are_typed_and_checked_against_this_torch():
    knobs = parse_knobs(
        "combo_kernels=1, coordinate_descent_search_radius=2,triton.cudagraphs=false"
    )
    assert knobs == {
        "combo_kernels": True,
        "coordinate_descent_search_radius": 2,
        "triton.cudagraphs": False,
    }
    with pytest.raises(UsageError, match=r"Did you mean 'combo_kernels'"):
        parse_knobs("combo_kernel=1")
    with pytest.raises(UsageError, match="name=value"):
        parse_knobs("combo_kernels")


def test_plain_compile_with_a_static_cache_means_max_autotune_on_cuda_and_default_on_a_cpu():
    cuda = compile_options(plan(**STATIC), torch.device("cuda"), static=True)
    assert (cuda.mode, cuda.cudagraphs) == ("max-autotune", "trees")
    assert cuda.options["triton.cudagraphs"] is True
    assert cuda.options["coordinate_descent_tuning"] is True
    manual = compile_options(
        plan(**STATIC, options=(("cudagraphs", "manual"),)), torch.device("cuda"), static=True
    )
    assert manual.options["triton.cudagraphs"] is False
    cpu = compile_options(plan(**STATIC), CPU, static=True)
    assert (cpu.mode, cpu.cudagraphs) == ("default", "off")


def test_cuda_graphs_are_left_off_for_a_cache_that_grows():
    cuda = torch.device("cuda")
    assert (
        compile_options(plan(compile="max-autotune"), cuda, static=False).options[
            "triton.cudagraphs"
        ]
        is False
    )
    with pytest.raises(UsageError, match="static-cache"):
        compile_options(plan(compile="reduce-overhead"), cuda, static=False)


@pytest.mark.parametrize("option", ["cudagraphs", "prefill"])
def test_an_unknown_choice_of_an_option_names_the_choices(option):
    with pytest.raises(UsageError, match=f"option {option}='fast'.*Choices"):
        TransformersModel(loaded(tiny_llama(), **STATIC, options=((option, "fast"),)))


def test_a_closed_model_waits_for_no_compilers(monkeypatch):
    """Inductor's pool imports torch when it starts, and its own end waits for that."""
    pool = SubprocPool(1)
    monkeypatch.setattr(async_compile, "_pool_set", {pool})
    end_compilers()
    assert pool.process.wait(60) == -signal.SIGKILL
    pool.shutdown()


def test_compilers_are_started_when_there_is_something_to_compile(monkeypatch):
    monkeypatch.delenv("TORCH_WARM_POOL", raising=False)
    warmed = []
    monkeypatch.setattr(async_compile, "has_triton_package", lambda: True)
    monkeypatch.setattr(async_compile.AsyncCompile, "warm_pool", lambda: warmed.append(True))
    monkeypatch.setattr(async_compile.AsyncCompile, "wakeup", lambda: None)
    async_compile.maybe_warm_pool()
    assert warmed == [True], "as torch does it"
    compile_options(plan(**STATIC), CPU, static=True)
    async_compile.maybe_warm_pool()
    assert warmed == [True]
