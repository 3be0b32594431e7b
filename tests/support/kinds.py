"""Small random models of the kinds that people run, made in the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

SIZE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HALF_WINDOWED = ["sliding_attention", "full_attention"] * 2
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MAMBA = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2}
MAMBA_IN_HYBRID = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
}


@dataclass(frozen=True)
class Kind:
    """A config class of transformers by its name, its values, and whether layers hold states."""

    config: str
    values: dict[str, Any]
    scan_layers: bool = False

    def make(self) -> Any:
        config: Callable[..., Any] = getattr(transformers, self.config)
        return config(**self.values)


KINDS = {
    "llama": Kind("LlamaConfig", SIZE),
    "mistral": Kind("MistralConfig", SIZE | {"sliding_window": 16}),
    "gemma2": Kind("Gemma2Config", SIZE | {"head_dim": 16, "sliding_window": 16}),
    "gemma3": Kind(
        "Gemma3TextConfig",
        SIZE | {"head_dim": 16, "sliding_window": 16, "layer_types": HALF_WINDOWED},
    ),
    "gemma4-shared": Kind(
        "Gemma4TextConfig",
        SIZE
        | {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 16,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 512,
            "layer_types": HALF_WINDOWED,
        },
    ),
    "mixtral": Kind("MixtralConfig", SIZE | {"num_local_experts": 8}),
    "qwen2-moe": Kind("Qwen2MoeConfig", SIZE | EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3-moe": Kind("Qwen3MoeConfig", SIZE | EXPERTS | {"head_dim": 16}),
    "gpt-oss": Kind(
        "GptOssConfig",
        SIZE
        | {
            "head_dim": 16,
            "sliding_window": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "deepseek-v3": Kind("DeepseekV3Config", SIZE | LATENT),
    "llama4": Kind(
        "Llama4TextConfig",
        SIZE
        | {
            "head_dim": 16,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 64,
        },
    ),
    "mamba2": Kind(
        "Mamba2Config",
        MAMBA | {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
        scan_layers=True,
    ),
    "bamba": Kind(
        "BambaConfig", SIZE | MAMBA_IN_HYBRID | {"attn_layer_indices": [1, 3]}, scan_layers=True
    ),
    "falcon-h1": Kind(
        "FalconH1Config",
        SIZE | MAMBA_IN_HYBRID | {"head_dim": 16, "mamba_d_ssm": 128},
        scan_layers=True,
    ),
    "lfm2": Kind(
        "Lfm2Config", SIZE | {"layer_types": ["conv", "full_attention"] * 2}, scan_layers=True
    ),
}
OTHERS = {
    "mamba": Kind("MambaConfig", MAMBA | {"state_size": 8}),
    "gemma3-vision": Kind(
        "Gemma3Config",
        {
            "text_config": KINDS["gemma3"].values,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
        },
    ),
}


@cache
def config_of(name: str) -> Any:
    """The config of a kind."""
    return (KINDS | OTHERS)[name].make()


def tiny(name: str) -> Any:
    """A model of this kind with random weights, whose products torch's counter knows."""
    config = config_of(name)
    torch.manual_seed(0)
    if hasattr(config, "vision_config"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    model.set_attn_implementation("eager")
    return model.eval()


def cached_run(model: Any, prompt: int, new_tokens: int, batch: int = 1) -> Any:
    """What `generate` returns of a random prompt, with its cache."""
    ids = torch.randint(5, 500, (batch, prompt))
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        disable_compile=True,
    )


def counted_flops(run: Callable[[], object]) -> int:
    """Return what torch's own counter sees of a call."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
