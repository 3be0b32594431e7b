"""Loading: from a load plan to a model that is ready to be measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models import ARCHITECTURES
from pytest_llmperf.engines.transformers import arch
from pytest_llmperf.engines.transformers.checkpoint import Source, from_builtin, from_folder, from_gguf, from_hub, load_errors
from pytest_llmperf.engines.transformers.factory import from_factory
from pytest_llmperf.errors import LoadError, UsageError

_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "huggingface-hub", "tokenizers", "triton")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model on its device, in evaluation mode and without gradients. `load_s` ends when the device is idle.

    `model` is a transformers causal language model. `checkpoint_dtype` is torch's name of the dtype it was stored in.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    plan: LoadPlan
    device: torch.device
    load_s: float
    content_hash: str
    checkpoint_dtype: str
    versions: dict[str, str]

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return int(self.model.get_input_embeddings().num_embeddings)


def load(plan: LoadPlan) -> Loaded:
    """Load what `plan` says. Raises UsageError for a device that is not there, LoadError, or out of memory as torch does."""
    device = torch_device(plan.device)
    _quieten()
    start_ns = time.perf_counter_ns()
    source = _LOADERS[_known_kind(plan)](plan, device)
    model, tokenizer = _ready(source.model), _left_padded(source.tokenizer)
    _neutral_generation(model, tokenizer)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        plan=plan,
        device=device,
        load_s=(time.perf_counter_ns() - start_ns) / 1e9,
        content_hash=source.content_hash,
        checkpoint_dtype=source.checkpoint_dtype,
        versions=package_versions(),
    )


def torch_device(name: str) -> torch.device:
    """The device called `name`. Raises UsageError if torch does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is not known: {error}. Devices: cpu, cuda, cuda:N.") from error
    if device.type == "cuda":
        _require_cuda(device, name)
        return torch.device("cuda", device.index or 0)
    return device


def _require_cuda(device: torch.device, name: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(
            f"device {name!r} was asked for, torch {torch.__version__} sees {count} CUDA devices. "
            "Use --llmperf-device cpu, or install a torch built for this machine's driver; 'llmperf doctor' says more.",
        )


def _known_kind(plan: LoadPlan) -> str:
    if plan.model.kind not in _LOADERS:
        raise LoadError(f"model {plan.model.name!r} is of kind {plan.model.kind!r}; this engine loads {', '.join(_LOADERS)}.")
    return plan.model.kind


def _from_arch(plan: LoadPlan, device: torch.device) -> Source:
    name = plan.model.location
    published = ARCHITECTURES[name].dtype
    dtype = getattr(torch, published if plan.weights_dtype == "auto" else plan.weights_dtype)
    with load_errors(plan, f"architecture {name!r}"):
        model = arch.build(name, dtype=dtype, device=device, seed=plan.seed, attention=plan.attention)
    content = arch.content_hash(name, device, plan.seed)
    return Source(model=model, tokenizer=None, content_hash=content, checkpoint_dtype=published)


_LOADERS: dict[str, Callable[[LoadPlan, torch.device], Source]] = {
    "builtin": from_builtin,
    "folder": from_folder,
    "hub": from_hub,
    "gguf": from_gguf,
    "arch": _from_arch,
    "factory": from_factory,
}


def _ready(model: Any) -> Any:
    return model.eval().requires_grad_(requires_grad=False)


def _left_padded(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    """Decoders continue at the right end: padding goes to the left, with the end token where there is no pad token."""
    if tokenizer is not None:
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _neutral_generation(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Greedy, no penalties: a checkpoint's own sampling defaults would change what is measured. Special tokens stay."""
    config = model.config.get_text_config()
    eos = config.eos_token_id
    first = eos[0] if isinstance(eos, list) else eos
    pad = tokenizer.pad_token_id if tokenizer is not None else config.pad_token_id
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers has no stubs for it
        do_sample=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=eos,
        pad_token_id=next(token for token in (pad, first, 0) if token is not None),
    )


def _quieten() -> None:
    """Progress bars are for people at a terminal; a worker's output is a log."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no stubs for it
    disable_progress_bars()


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter to speed and outputs, as installed here."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
