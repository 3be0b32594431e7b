"""Names that pytest needs before anything is imported, such as one fixture for each strategy.

Nothing is imported here.
"""

PARTS = (
    "auto",
    "fp32",
    "fp16",
    "bf16",
    "fp16-mixed",
    "bf16-mixed",
    "int8",
    "nf4",
    "fp4",
    "int8wo",
    "int4wo",
    "fp8",
    "static-cache",
    "kv-int8",
    "kv-fp8",
    "compile",
    "sdpa",
    "eager",
    "flash",
    "prompt-lookup",
    "continuous",
    "tp2",
    "own-tp2",
    "fsdp2",
    "own-pp2",
    "dp2",
    "offload-cpu",
    "offload-disk",
)
"""Strategy parts that stand alone.

A test holds them equal to the table of strategies, which is too heavy to import here.
"""

STRATEGY_FIXTURES = {f"llm_{part.replace('-', '_')}": part for part in PARTS} | {
    "llm_int4": "int4wo"
}
"""Fixture name -> strategy."""

ENGINE_FIXTURES = {"llm_vllm": "vllm"}
"""Fixture name -> engine.

It gives the model of a test on another engine than the marker's, under the marker's strategy.
"""

NAMED_FIXTURES: dict[str, tuple[str | None, str | None]] = {
    **{name: (strategy, None) for name, strategy in STRATEGY_FIXTURES.items()},
    **{name: (None, engine) for name, engine in ENGINE_FIXTURES.items()},
}
"""Fixture name -> strategy and engine; None is the marker's."""

FIXTURES = frozenset({"llm", "baseline", "llm_factory", "llmperf", *NAMED_FIXTURES})

DEVICE_MEANINGS = {"gpu": "cuda", "nvidia": "cuda", "host": "cpu"}
"""What people call a device -> its name here."""

STRATEGY_MEANINGS = {
    "float32": "fp32",
    "single": "fp32",
    "f32": "fp32",
    "float": "fp32",
    "full": "fp32",
    "float16": "fp16",
    "f16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "amp": "bf16-mixed",
    "autocast": "bf16-mixed",
    "float8": "fp8",
    "8bit": "int8",
    "load_in_8bit": "int8",
    "llm_int8": "int8",
    "w8a16": "int8wo",
    "4bit": "nf4",
    "load_in_4bit": "nf4",
    "int4": "int4wo",
    "qlora": "nf4",
    "bitsandbytes": "nf4",
    "torch.compile": "compile",
    "inductor": "compile",
    "flash_attention": "flash",
    "flash_attention_2": "flash",
    "flash_attn": "flash",
    "fa2": "flash",
    "scaled_dot_product_attention": "sdpa",
    "static": "static-cache",
    "continuous-batching": "continuous",
    "tensor-parallel": "tp2",
    "tensor-parallelism": "tp2",
    "pipeline-parallel": "own-pp2",
    "data-parallel": "dp2",
    "8bits": "int8",
    "4bits": "nf4",
    "fp8-kv": "kv-fp8",
    "speculative": "prompt-lookup",
    "cpu-offload": "offload-cpu",
    "disk-offload": "offload-disk",
    "device_map": "offload-cpu",
}
"""What a strategy is called elsewhere -> the part that is meant."""

ENGINE_MEANINGS = {
    "hf": "transformers",
    "huggingface": "transformers",
    "torch": "transformers",
    "pytorch": "transformers",
    "llamacpp": "server:llama.cpp",
    "llama-server": "server:llama.cpp",
    "gguf": "server:llama.cpp",
    "openai": "server",
    "http": "server",
    "text-generation-inference": "server:tgi",
    "rayserve": "server:ray",
}
"""What an engine is called elsewhere -> its name here."""

NAMED_MODEL = "llmperf run"
"""What the ids of tests begin with that `llmperf run MODEL` measures: no file of the project's."""

MARKER = (
    "llmperf(model=None, *, strategy=None, strategies=(), engine='transformers', device=None, "
    "budget=None, precision=None, label='', revision=None, trust_remote_code=False, seed=0, "
    "options={}, gate={}): a performance test of a language model. `model` is a Hugging Face id, "
    "a local folder, a GGUF file, an alias such as 'smollm2-135m', 'arch:falcon-7b', or "
    "'pkg.mod:build'; `strategies` parametrises the `llm` fixture; `budget` is seconds of "
    "sampling, `precision` the wanted half-width of the 99 % interval in percent; "
    "`gate={'throughput': 0.05}` is how much worse --llmperf-gate lets it get. The closest marker "
    "wins, argument by argument."
)

GPUS_MARK = "llmperf_gpus"

GPUS_MARKER = (
    "llmperf_gpus(n=1 | min=, max=, memory=, total_memory=, capability=, name=): the test, "
    "llmperf or not, needs so many GPUs of the pool (--llmperf-gpus) and holds them while it "
    "runs; it is skipped where the pool has fewer. `memory` is bytes that it takes on each (a "
    "test that measures nothing then holds that share of a GPU alone), `total_memory` how large "
    "each is, `capability` the least compute capability, such as (9, 0), `name` a part of the "
    "name, as 'H200'. The closest marker wins."
)

ISOLATED_MARKER = (
    "llmperf_isolated(timeout=None): the test's body, with its fixtures, runs in a fresh process; "
    "pass, failure with its traceback, skip, xfail, a crash by a signal, output and recorded runs "
    "are those of that process, which has to prove that the body ran. `timeout` is seconds "
    "(default: --llmperf-timeout)."
)

RANKS_MARKER = (
    "llmperf_ranks(n, timeout=None): the test's body runs once in each of `n` processes, with "
    "torchrun's variables set and the fixture `llmperf_rank`; a failure of any rank is the "
    "test's, skips must agree, and a hang shows the stacks of every rank."
)
