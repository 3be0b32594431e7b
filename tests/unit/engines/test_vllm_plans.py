"""The vLLM engine before anything is loaded.

These are the plans that it refuses, and the arguments that a plan becomes. vLLM is not imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import TokenEvent
from pytest_llmperf.engines import engine
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.vllm.arguments import GIB, arguments, environment
from pytest_llmperf.engines.vllm.stepping import Ask, require_no_cached, run
from pytest_llmperf.errors import InvalidRun, UsageError
from pytest_llmperf.strategies import check_engine_can, parse

FOLDER = Path("/models/m")


def plan(
    strategy: str = "fp32", *, model: str = "smollm2-135m", device: str = "cpu", **options
) -> LoadPlan:
    base = LoadPlan(
        model=model_ref(model), engine="vllm", device=device, options=tuple(options.items())
    )
    return parse(strategy).apply(base)


def asked(
    strategy: str = "fp32", *, device: str = "cpu", free_share: float = 1.0, **options
) -> dict:
    return arguments(
        plan(strategy, device=device, **options), FOLDER, dtype="float32", free_share=free_share
    )


@pytest.mark.parametrize(
    ("strategy", "device", "reason"),
    [
        ("nf4", "cpu", "kernels are for GPUs"),
        ("int8", "cuda", "vLLM has no 'int8'"),
        ("int4wo", "cuda", "that quantizes while loading"),
        ("nf4:double", "cuda", "without an argument"),
        ("compile:max-autotune", "cuda", "write 'compile' instead"),
        ("fp32+kv-fp8", "cpu", "bf16\\+kv-fp8"),
        ("tp2", "cpu", "tp2 does not divide the 9 heads"),
        ("own-pp2", "cuda", "pp"),
        ("own-tp3", "cuda", "'own-tp3' cannot be honoured .* tp_by = 'own'.* tp_by: library"),
        ("fp16-mixed", "cpu", "autocast_dtype"),
        ("static-cache", "cpu", "cache"),
        ("wanda:0.5", "cpu", "pruning"),
        ("sdpa", "cpu", "attention"),
        ("fsdp2", "cuda", "fsdp"),
        ("kv-int8", "cuda", "cache"),
        ("assisted:smollm2-135m", "cpu", "assist"),
        ("lora:adapters/a:merged", "cpu", "does not merge"),
        ("compile+lora:adapters/a", "cpu", "a precision alone, not with compile"),
        ("tp3+lora:adapters/a", "cuda", "not with several ranks"),
    ],
)
def test_what_it_lacks_is_refused_before_loading(strategy, device, reason):
    """With the part, and what to do instead."""
    with pytest.raises(UsageError, match=reason):
        check_engine_can(plan(strategy, device=device), engine("vllm").load_capabilities(), "vllm")


@pytest.mark.parametrize(
    ("strategy", "device"),
    [
        ("fp32", "cpu"),
        ("bf16", "cpu"),
        ("fp16", "cuda"),
        ("bf16+compile", "cuda"),
        ("bf16+nf4", "cuda"),
        ("bf16+fp8", "cuda"),
        ("bf16+kv-fp8", "cuda"),
        ("fp32+prompt-lookup", "cpu"),
        ("fp32+continuous", "cpu"),
        ("tp3", "cuda"),
    ],
)
def test_what_it_has_is_taken(strategy, device):
    """The counterpart of the refusals."""
    check_engine_can(plan(strategy, device=device), engine("vllm").load_capabilities(), "vllm")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_modellen": 8}, "Did you mean 'max_model_len'"),
        ({"max_model_len": "8"}, "int is needed"),
        ({"max_num_seqs": True}, "int is needed"),
        ({"prefix_cache": 1}, "bool is needed"),
    ],
)
def test_a_wrong_option_is_named(options, reason):
    """With its value and what was possible."""
    assert reason in str(engine("vllm").load_capabilities().refusal(plan(**options)))


def test_eager_and_compile_exclude_each_other():
    """One asks for no graphs, the other for some."""
    assert "exclude" in str(engine("vllm").load_capabilities().refusal(plan("compile", eager=True)))


def test_heads_that_its_cpu_kernels_do_not_know_are_refused():
    """Of 16 dimensions on a CPU; a GPU takes them."""
    capabilities = engine("vllm").load_capabilities()
    assert "have 16 dimensions" in str(capabilities.refusal(plan(model="arch:tiny-llama")))
    assert capabilities.refusal(plan(model="arch:tiny-llama", device="cuda")) is None
    assert capabilities.refusal(plan(model="arch:small-llama")) is None


def test_a_gguf_file_is_refused(tmp_path):
    """It would have to be dequantized first."""
    file = tmp_path / "m.gguf"
    file.touch()
    assert "vLLM reads a folder" in str(
        engine("vllm").load_capabilities().refusal(plan(model=str(file)))
    )


def test_the_prefix_cache_is_off_unless_asked_for():
    """vLLM's own default is on."""
    assert asked()["enable_prefix_caching"] is False
    assert asked(prefix_cache=True)["enable_prefix_caching"] is True


def test_the_dtype_is_always_said():
    """vLLM's "auto" turns a float32 checkpoint into 16 bit."""
    assert asked("auto")["dtype"] == "float32"


@pytest.mark.parametrize(
    ("strategy", "device", "options", "eager"),
    [
        ("fp32", "cpu", {}, True),
        ("compile", "cpu", {}, False),
        ("bf16", "cuda", {}, False),
        ("bf16", "cuda", {"eager": True}, True),
        ("bf16+compile", "cuda", {}, False),
    ],
)
def test_graphs_are_the_default_on_a_gpu_only(strategy, device, options, eager):
    """On a CPU compiling takes a minute, and is asked for."""
    assert asked(strategy, device=device, **options)["enforce_eager"] is eager


def test_the_kv_cache_is_bounded():
    """By bytes where they are named and on a CPU; else by the share of the GPU that is free."""
    assert asked()["kv_cache_memory_bytes"] == GIB
    assert asked(kv_cache_gib=0.5)["kv_cache_memory_bytes"] == GIB // 2
    assert asked("bf16", device="cuda", free_share=0.5)["gpu_memory_utilization"] == 0.45
    assert asked("bf16", device="cuda", kv_cache_gib=2)["kv_cache_memory_bytes"] == 2 * GIB


def test_parts_become_vllms_own_arguments():
    """One row a part."""
    assert asked("bf16+nf4", device="cuda")["quantization"] == "bitsandbytes"
    assert asked("bf16+fp8", device="cuda")["quantization"] == "fp8"
    assert asked("bf16+kv-fp8")["kv_cache_dtype"] == "fp8"
    assert asked("prompt-lookup")["speculative_config"]["method"] == "ngram"
    assert "quantization" not in asked("w8a8:/models/q")
    assert asked("tp3", device="cuda")["distributed_executor_backend"] == "external_launcher"
    assert "distributed_executor_backend" not in asked()
    assert asked(max_num_seqs=8, max_model_len=512)["max_num_seqs"] == 8


def test_the_table_of_engines_imports_no_vllm():
    """Nor torch: capabilities are read in the pytest process."""
    code = (
        "import sys; from pytest_llmperf.engines import engine; "
        "engine('vllm').load_capabilities(); print({'vllm', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# The step loop, on an engine that is written out


class Completion:
    def __init__(self, token_ids):
        self.token_ids = token_ids


class Output:
    def __init__(self, request_id, token_ids, cached=0):
        self.request_id = request_id
        self.outputs = [Completion(token_ids)]
        self.num_cached_tokens = cached


class Written:
    """Gives each request one token a step, up to `limit`.

    From the second step on where it is to be `late`.
    """

    def __init__(self, *, limit=99, late=(), cached=0, suffix=""):
        self.left = {}
        self.limit, self.late, self.cached, self.suffix = limit, late, cached, suffix
        self.steps = 0

    def submit(self, name, ask):
        self.left[name] = min(ask.new_tokens, self.limit)

    def has_unfinished_requests(self):
        return bool(self.left)

    def abort_request(self, request_ids):
        raise AssertionError(request_ids)

    def step(self):
        self.steps += 1
        going = [
            name
            for name in self.left
            if self.steps > 1 or int(name.rpartition("-")[2]) not in self.late
        ]
        outputs = [Output(name + self.suffix, [self.steps], self.cached) for name in going]
        for name in going:
            self.left[name] -= 1
            if not self.left[name]:
                del self.left[name]
        return outputs


@pytest.mark.parametrize("suffix", ["", "-8fa1b2c3"])
def test_each_token_has_the_time_of_its_step(suffix):
    """Two requests, the second prefilled a step later; vLLM may put a suffix behind a name."""
    made = Written(late={1}, suffix=suffix)
    stepped = run(made, made.submit, [Ask([1, 2], 3), Ask([3], 2)])
    first, second = stepped.answers
    assert (first.tokens, second.tokens) == ([1, 2, 3], [2, 3])
    assert [event.t_ns for event in first.events][1:] == [event.t_ns for event in second.events]
    times = [stepped.start_ns, *(event.t_ns for event in first.events)]
    assert times == sorted(set(times))
    assert first.events[0] == TokenEvent(times[1], 1)
    assert stepped.steps == 3


def test_another_number_of_tokens_is_an_error():
    """A stopping rule, or a model that takes no longer sequence."""
    made = Written(limit=2)
    with pytest.raises(InvalidRun, match="request 0: 2 instead of 3"):
        run(made, made.submit, [Ask([1], 3), Ask([1], 2)])


def test_tokens_from_a_prefix_cache_are_seen():
    """The negative control of a cache that was to be off."""
    for cached in (0, 16):
        made = Written(cached=cached)
        stepped = run(made, made.submit, [Ask([1] * 32, 2)])
        if cached:
            with pytest.raises(
                InvalidRun, match="16 of 32 prompt tokens came from vLLM's prefix cache"
            ):
                require_no_cached(stepped, 32)
        else:
            require_no_cached(stepped, 32)


@pytest.mark.parametrize(
    ("strategy", "variables"),
    [
        ("bf16+w4a16:/models/m", {"VLLM_CPU_INT4_W4A8": "0"}),
        ("bf16+w8a8:/models/m", {}),
        ("bf16", {}),
    ],
)
def test_four_bit_weights_keep_their_inputs(strategy, variables):
    """On CPUs with AMX vLLM would compute with int8 inputs, which nobody asked for."""
    assert environment(plan(strategy)) == variables
