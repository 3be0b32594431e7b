"""A server's settings: what each server says of itself, what was asked for, and what is proved."""

from __future__ import annotations

import asyncio
import shlex
from types import SimpleNamespace

import pytest

from pytest_llmperf.core.trace import TokenEvent
from pytest_llmperf.engines.server.client import Call, RequestOutcome
from pytest_llmperf.engines.server.proof import asked, probes, proved, questions, self_report
from pytest_llmperf.engines.server.proof.probes import FirstTokens
from pytest_llmperf.engines.server.stream import Answer
from pytest_llmperf.errors import NotInEffect

VLLM = {
    "vllm_config": {
        "model_config": {"dtype": "torch.bfloat16", "max_model_len": 4096, "quantization": None},
        "cache_config": {
            "cache_dtype": "auto",
            "enable_prefix_caching": False,
            "num_gpu_blocks": 100,
            "block_size": 16,
        },
        "parallel_config": {"tensor_parallel_size": 2},
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 5},
    }
}
VLLM_TEXT = {
    "vllm_config": "model='m', speculative_config=None, tokenizer='m', dtype=torch.float16, "
    "max_seq_len=2048, tensor_parallel_size=1, quantization=fp8, kv_cache_dtype=auto, "
    "enable_prefix_caching=True, compilation_config={'level': 3}"
}
SGLANG = {
    "tp_size": 4,
    "dtype": "auto",
    "quantization": "awq",
    "kv_cache_dtype": "fp8_e5m2",
    "disable_radix_cache": True,
    "speculative_algorithm": None,
    "context_length": None,
    "max_total_num_tokens": 163840,
}
TGI = {"model_dtype": "torch.float16", "max_total_tokens": 4096, "max_batch_total_tokens": 98304}
PROPS = {"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4}
CACHE_LINE = (
    'vllm:cache_config_info{block_size="16",cache_dtype="fp8",enable_prefix_caching="True",'
    'engine="0",num_gpu_blocks="200"} 1.0\n'
)
ESCAPED = CACHE_LINE.replace('engine="0"', r'engine="0\"},cache_dtype=\"x"')
NAMES = (*self_report.SETTINGS, self_report.KV_TOKENS)


def values(answers: dict[str, object], model: str = "m") -> dict[str, str]:
    return {
        name: reported.value
        for name, reported in self_report.reported_settings(answers, model).items()
    }


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (
            {self_report.VLLM: VLLM},
            ("bfloat16", "none", "2", "bfloat16", "off", "ngram, 5 tokens", "4096", "1600"),
        ),
        (
            {self_report.VLLM: VLLM_TEXT},
            ("float16", "fp8", "1", "float16", "on", "off", "2048", ""),
        ),
        ({self_report.SGLANG: SGLANG}, ("", "awq", "4", "fp8_e5m2", "off", "off", "", "163840")),
        ({self_report.TGI: TGI}, ("float16", "", "", "", "", "", "4096", "98304")),
        ({self_report.LLAMA_CPP: PROPS}, ("", "", "", "", "", "", "2048", "8192")),
        ({self_report.METRICS: CACHE_LINE}, ("", "", "", "fp8", "on", "", "", "3200")),
        ({self_report.METRICS: "ray_" + CACHE_LINE}, ("", "", "", "fp8", "on", "", "", "3200")),
        (
            {self_report.METRICS: ESCAPED},
            ("", "", "", "fp8", "on", "", "", "3200"),
        ),
        (
            {self_report.METRICS: 'sglang:max_total_num_tokens{model_name="m"} 4096.0\n'},
            ("", "", "", "", "", "", "", "4096"),
        ),
        (
            {self_report.MODELS: {"data": [{"id": "other"}, {"id": "m", "max_model_len": 1024}]}},
            ("", "", "", "", "", "", "1024", ""),
        ),
        (
            {self_report.MODELS: {"data": [{"metadata": {"max_request_context_length": 512}}]}},
            ("", "", "", "", "", "", "512", ""),
        ),
        (
            {
                self_report.MODELS: {
                    "data": [{"meta": {"size": 91_000_000, "n_params": 134_515_008}}]
                }
            },
            ("", "5.41 bits a weight", "", "", "", "", "", ""),
        ),
    ],
    ids=[
        "vllm", "vllm as text", "sglang", "tgi", "llama.cpp", "vllm metrics", "ray metrics",
        "escaped label", "sglang metrics", "vllm models", "ray models", "gguf",
    ],
)  # fmt: skip
def test_each_server_is_read_in_its_own_words(answers, expected):
    """What one does not say is not there: `auto` says that the server chose, and not what."""
    assert values(answers) == {
        name: value for name, value in zip(NAMES, expected, strict=True) if value
    }


@pytest.mark.parametrize(
    "answer",
    [None, [], "text", 3, {}, {"data": [3]}, {"vllm_config": []}, {"tp_size": True},
     {"model_dtype": None}, {"default_generation_settings": "no"},
     {"vllm_config": {"model_config": [], "cache_config": {"block_size": "x"}}}],
)  # fmt: skip
@pytest.mark.parametrize("path", self_report.PATHS)
def test_no_answer_breaks_the_reading(path, answer):
    """Another program may answer there."""
    assert set(values({path: answer})) <= {"tensor_parallel", "quantization"}


def test_a_running_configuration_comes_before_a_list_of_models():
    """And each value says where it comes from."""
    reported = self_report.reported_settings(
        {self_report.MODELS: {"data": [{"id": "m", "max_model_len": 9}]}, self_report.TGI: TGI}, "m"
    )
    assert reported["context"] == ("4096", "/info")


def test_a_command_says_what_is_asked_for():
    """By the flags of every server that we know; `auto` asks for nothing."""
    command = shlex.split(
        "vllm serve m --dtype half -tp 2 --kv-cache-dtype=fp8_e4m3 --max_model_len 4k "
        "--no-enable-prefix-caching --quantization auto --speculative-config '{}'"
    )
    assert {name: wanted.value for name, wanted in asked.of_command(command).items()} == {
        "dtype": "float16",
        "tensor_parallel": "2",
        "kv_dtype": "fp8",
        "context": "4000",
        "prefix_cache": "off",
        "quantization": "none",
        "speculation": "on",
    }
    assert asked.of_command(["--max-model-len", "auto", "--tp"]) == {}


@pytest.mark.parametrize(
    ("name", "wanted", "value"),
    [("kv_dtype", "fp8", "auto16"), ("prefix_cache", "off", "on"), ("tensor_parallel", "2", "1"),
     ("speculation", "on", "off"), ("quantization", "awq", "none"), ("context", "4096", "2048")],
)  # fmt: skip
def test_another_setting_than_was_asked_for_is_not_in_effect(name, wanted, value):
    """The words name both, and where each was said."""
    reported = {name: self_report.Reported(value, "/server_info")}
    with pytest.raises(NotInEffect, match=rf"{name} is {value} \(/server_info\), asked for"):
        proved.settings(reported, {name: asked.Asked(wanted, "--flag")})


@pytest.mark.parametrize(
    ("wanted", "value"),
    [("fp8", "fp8_e4m3"), ("on", "ngram, 5 tokens"), ("ngram", "ngram, 5 tokens"),
     ("half", "float16"), ("off", "off")],
)  # fmt: skip
def test_one_setting_under_two_names_is_one(wanted, value):
    """Servers name what they resolved, commands what was meant."""
    assert asked.agrees(wanted, value)


def test_what_nobody_says_is_named():
    """In the record's settings, and in words."""
    rows = proved.settings(
        {"dtype": self_report.Reported("bfloat16", "/info")},
        {"kv_dtype": asked.Asked("fp8", "--f")},
    )
    assert [row.name for row in rows] == list(self_report.SETTINGS)
    settings, unproved = proved.notes(rows)
    assert settings == "settings: dtype bfloat16 (/info)"
    assert unproved.startswith(
        "not proved: quantization, tensor_parallel, kv_dtype (asked for fp8)"
    )


@pytest.mark.parametrize(
    ("new_s", "again_s", "short_s", "verdict"),
    [
        ((0.2, 0.21, 0.2), (0.05, 0.06, 0.05), (0.04,), "on"),
        ((0.2, 0.21, 0.2), (0.2, 0.21, 0.19), (0.04,), "off"),
        ((0.2, 0.21, 0.2), (0.2, 0.21, 0.19), (0.15,), ""),
        ((0.2, 0.21, 0.2), (0.05, 0.2, 0.05), (0.04,), ""),
        ((0.2, 0.21, 0.2), (0.2, 0.2, 0.2), (), ""),
        ((), (), (), ""),
    ],
    ids=["a hit", "a miss", "tokens take no time", "hits and misses", "no short ones", "nothing"],
)
def test_times_of_first_tokens_tell_only_where_they_can(new_s, again_s, short_s, verdict):
    """A long prompt takes time at all, and every repeated one is fast, or all are slow."""
    assert FirstTokens(new_s, again_s, short_s).verdict() == verdict


@pytest.mark.parametrize(
    ("text", "words"),
    [("tp=2", "'tp' is not a setting"), ("kv_dtyp=fp8", "Did you mean 'kv_dtype'"),
     ("context", "context needs a value, for example 'context=4096'")],
)  # fmt: skip
def test_an_expectation_that_cannot_be_read_is_refused(text, words):
    """Before anything is started."""
    assert words in (asked.expect_refusal(text) or "")
    assert asked.expect_refusal("prefix_cache=off, dtype=bf16") is None


def answered(ttft_s: float) -> RequestOutcome:
    """A request whose first token came so many seconds after it was sent."""
    events = (TokenEvent(round(ttft_s * 1e9)),)
    answer = Answer(
        events=events, text="x", n_prompt=1, n_output=1, n_cached=None, model=None, counted="ids"
    )
    return RequestOutcome(Call(body=b"", n_prompt_tokens=1), 0, answer=answer)


@pytest.mark.parametrize(
    ("again_s", "long_s", "expected"),
    [
        (0.02, 0.2, self_report.Reported("on", probes.TIMES)),
        (0.2, 0.2, self_report.Reported("off", probes.TIMES)),
        (0.02, 0.04, None),
    ],
    ids=["a cache", "none", "tokens take no time"],
)
def test_where_nothing_counts_the_first_tokens_are_timed(again_s, long_s, expected):
    """Three new prompts, each again, and short ones; no metrics, no counts of cached tokens."""
    seen: set[tuple[int, int]] = set()

    async def send(number: int, n_tokens: int) -> RequestOutcome:
        is_new = (number, n_tokens) not in seen
        seen.add((number, n_tokens))
        if n_tokens == 1:
            return answered(0.02)
        return answered(long_s if is_new else again_s)

    async def metrics() -> dict[str, float]:
        return {}

    assert asyncio.run(probes.prefix_cache(send, metrics, 256)) == expected


@pytest.mark.parametrize(
    ("status", "words", "is_length"),
    [
        (400, "This model's maximum context length is 512 tokens", True),
        (422, "inputs tokens + max_new_tokens must be <= 2048", True),
        (413, "the prompt is too long", True),
        (429, "maximum context length per minute", False),
        (503, "context", False),
        (400, "unknown field 'ignore_eos'", False),
    ],
)
def test_only_a_refusal_for_its_length_proves_a_context(status, words, is_length):
    assert questions.refused_for_length(status, words) is is_length


@pytest.mark.parametrize(
    ("cached", "hits", "expected"),
    [
        ((0, 0, 0, 0), 0.0, ("off", probes.USAGE)),
        ((0, 0, 256, 0), 0.0, ("on", probes.USAGE)),
        ((0, 0, 0, 0), 256.0, ("on", probes.COUNTERS)),
    ],
)
def test_a_usage_of_zero_is_held_against_counters_and_more_repeats(cached, hits, expected):
    """A field that nobody fills, and two replicas with a cache each."""
    counts = iter(cached)
    pages = iter([0.0, 1000.0])

    async def send(_number: int, _n_tokens: int) -> RequestOutcome:
        return SimpleNamespace(answer=SimpleNamespace(n_cached=next(counts), events=()))

    async def metrics() -> dict[str, float]:
        queries = next(pages)
        return {"prefix_queries": queries, "prefix_hits": hits if queries else 0.0}

    assert asyncio.run(probes.prefix_cache(send, metrics, 256)) == expected
