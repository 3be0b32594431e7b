"""Names that pytest needs before anything is imported: the fixtures that are made, one for each strategy. No imports here."""

STRATEGY_FIXTURES: dict[str, str] = {
    "llm_fp32": "fp32",
    "llm_fp16": "fp16",
    "llm_bf16": "bf16",
    "llm_fp16_mixed": "fp16-mixed",
    "llm_bf16_mixed": "bf16-mixed",
    "llm_static_cache": "static-cache",
    "llm_compile": "compile",
    "llm_sdpa": "sdpa",
    "llm_eager": "eager",
    "llm_flash": "flash",
}
"""Fixture name -> strategy. A test keeps it equal to what the table of strategies offers."""

FIXTURES = frozenset({"llm", "baseline", "llm_factory", "llmperf", *STRATEGY_FIXTURES})

MARKER = (
    "llmperf(model=None, *, strategy=None, strategies=(), engine='transformers', device=None, budget=None, precision=None, "
    "label='', revision=None, trust_remote_code=False, seed=0, options={}, gate={}): a performance test of a language model. "
    "`model` is a Hugging Face id, a local folder, a GGUF file, an alias such as 'smollm2-135m', 'arch:falcon-7b', or "
    "'pkg.mod:build'; `strategies` parametrises the `llm` fixture; `budget` is seconds of sampling, `precision` the wanted "
    "half-width of the 99 % interval in percent; `gate={'throughput': 0.05}` is how much worse --llmperf-gate lets it get. "
    "The closest marker wins, argument by argument."
)
