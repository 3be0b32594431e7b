"""Loading: from a load plan to a model that is ready to be measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.quantization import scheme_of
from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.loading.checkpoint import load_errors, quantized_by
from pytest_llmperf.engines.loading.reference_key import reference_key
from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.engines.models.content import hash_value
from pytest_llmperf.engines.models.padding import padding_id
from pytest_llmperf.engines.outputs.bounds import embedding_rows
from pytest_llmperf.engines.transformers.assistants import assistant_plan, require_same_tokens
from pytest_llmperf.engines.transformers.checkpoint import (
    SourceModel,
    from_builtin,
    from_folder,
    from_gguf,
    from_hub,
    from_quantized,
    weights_dtype,
)
from pytest_llmperf.engines.transformers.continuous import require_continuous
from pytest_llmperf.engines.transformers.factory import from_factory
from pytest_llmperf.engines.transformers.kv_cache import require_cache
from pytest_llmperf.engines.transformers.observed.unasked import (
    on_code,
    on_generation,
    on_tokenizer,
)
from pytest_llmperf.engines.transformers.parallel import build as parallel
from pytest_llmperf.engines.transformers.parallel import library
from pytest_llmperf.engines.transformers.parallel.group import Grid, join
from pytest_llmperf.engines.transformers.parallel.offload import offload, require_accelerate
from pytest_llmperf.engines.transformers.prune import PrunedLayers, prune
from pytest_llmperf.engines.transformers.quantize import Conversion, Quantizer
from pytest_llmperf.errors import LoadError, UsageError
from pytest_llmperf.instruments.ranks import package_versions, rank_device, torch_device

if TYPE_CHECKING:
    from pytest_llmperf.engines.transformers.adapters import Adapters


@dataclass(frozen=True, kw_only=True)
class ModelOnDevice:
    """A model on its device, in evaluation mode and without gradients.

    `model` is a transformers causal language model, and `load_s` ends when its device is idle.
    `checkpoint_dtype` is torch's name of the dtype it was stored in. `conversion` says which linear
    layers were quantized, if the plan asked for that; `adapters` are peft's, on the model or merged
    into it; `assistant` proposes tokens to it. `cut` says what this rank holds of a model that
    several ranks share. `not_read` says what lies beside the model and was not read, `unasked` what
    its loader decided by itself.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    plan: LoadPlan
    device: torch.device
    content_hash: str
    checkpoint_dtype: str
    versions: dict[str, str]
    load_s: float = 0.0
    pruned: PrunedLayers | None = None
    adapters: Adapters | None = None
    assistant: ModelOnDevice | None = None
    base_hash: str = ""
    reference_key: str = ""
    conversion: Conversion | None = None
    cut: parallel.Cut | None = None
    not_read: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return embedding_rows(self.model)


def load(plan: LoadPlan) -> ModelOnDevice:
    """Load what `plan` says.

    Raises UsageError for a device that is not there, LoadError, or out of memory as torch does.
    """
    device = torch_device(rank_device(plan.device))
    _disable_progress_bars()
    _require_packages(plan)
    versions = package_versions()
    grid = join(plan, device)
    start_ns = time.perf_counter_ns()
    source, cut = _read_on_rank(plan, device, grid)
    loaded = _transformed(source, plan, device, versions)
    assistant = _assistant(loaded)
    offload(loaded.model, plan, device)
    _wait_until_idle(device)
    load_s = (time.perf_counter_ns() - start_ns) / 1e9
    return replace(loaded, load_s=load_s, assistant=assistant, cut=cut)


def _transformed(
    source: SourceModel, plan: LoadPlan, device: torch.device, versions: dict[str, str]
) -> ModelOnDevice:
    """Prune, quantize and adapt a model that was read, as the plan says."""
    if plan.quantization is not None and not scheme_of(plan.quantization).path:
        _require_plain(plan, source.model.config)
    key = reference_key(source.model, source.tokenizer, source.held_hash)
    model = _for_inference(source.model)
    tokenizer = _left_padded(source.tokenizer)
    unasked = (*source.unasked, *_unasked(model, tokenizer))
    _neutral_generation(model, tokenizer)
    # Pruning comes first: quantized weights cannot be ranked, and merged adapters fill the zeros.
    pruned = prune(model, tokenizer, plan, device)
    adapters, conversion = _adapt_and_quantize(model, source, plan, device)
    return ModelOnDevice(
        model=model,
        tokenizer=tokenizer,
        plan=plan,
        device=device,
        content_hash=_content_hash(source, adapters),
        reference_key=key,
        base_hash="" if adapters is None else source.content_hash,
        checkpoint_dtype=source.checkpoint_dtype,
        versions=versions,
        conversion=conversion,
        pruned=pruned,
        adapters=adapters,
        not_read=source.not_read,
        unasked=unasked,
    )


def _unasked(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    return (*on_generation(model), *on_code(model), *on_tokenizer(model, tokenizer))


def _require_packages(plan: LoadPlan) -> None:
    """Raise UsageError, before anything is loaded, where a package lacks what the plan needs."""
    require_accelerate(plan)
    require_cache(plan)
    require_continuous(plan)
    _require_peft(plan)


def _require_peft(plan: LoadPlan) -> None:
    if plan.adapters and find_spec("peft") is None:
        raise UsageError(
            "strategy part 'lora' needs the package peft on top of engine 'transformers', "
            "which is not installed. pip install 'pytest-llmperf[peft]'",
        )


def _read_on_rank(
    plan: LoadPlan, device: torch.device, grid: Grid | None
) -> tuple[SourceModel, parallel.Cut | None]:
    """Read this rank's model, or its part of one.

    Weights that will be offloaded start out on the host.
    """
    if grid is None:
        return _read(plan, device if plan.offload is None else torch.device("cpu")), None
    if library.is_by_library(plan):
        return library.read(plan, device, grid)
    if parallel.is_cut(plan):
        return parallel.read(plan, device, grid)
    source = _read(plan, device)
    return source, parallel.replica_cut(plan, source.model, grid)


def _read(plan: LoadPlan, device: torch.device) -> SourceModel:
    """Read the model, and say what it was read from.

    A model that is quantized goes to the device layer by layer, unless it is pruned first.
    """
    read = _LOADERS[_known_kind(plan)]
    if plan.quantization is not None and scheme_of(plan.quantization).path:
        return from_quantized(plan, device)
    if plan.model.kind == "arch" or not _quantized_early(plan):
        return read(plan, device)
    quantizer = Quantizer(plan, device)
    source = read(plan, torch.device("cpu"))
    _require_plain(plan, source.model.config)
    return replace(source, conversion=_quantized(source.model, quantizer, plan))


def _require_plain(plan: LoadPlan, config: Any) -> None:
    """Raise LoadError where a checkpoint that is quantized already would be quantized again."""
    method = quantized_by(config)
    if method:
        raise LoadError(
            f"model {plan.model.name!r} is quantized already (by {method}), and "
            f"{plan.quantization!r} cannot quantize it again. Use 'auto', or name a checkpoint "
            "that is not quantized."
        )


def _quantized_late(plan: LoadPlan) -> bool:
    """Whether weights are pruned or merged with adapters, in full precision, and then quantized."""
    return plan.pruning is not None or plan.merge_adapters


def _quantized_early(plan: LoadPlan) -> bool:
    """Whether weights are quantized while they are read."""
    return plan.quantization is not None and not _quantized_late(plan)


def _adapt_and_quantize(
    model: Any, source: SourceModel, plan: LoadPlan, device: torch.device
) -> tuple[Adapters | None, Conversion | None]:
    """Quantize the weights with merged adapters in them; put adapters that stay apart on top."""
    adapters = _adapters(model, plan) if plan.merge_adapters else None
    conversion = source.conversion
    if plan.quantization is not None and _quantized_late(plan):
        conversion = _quantized(model, Quantizer(plan, device), plan)
    if plan.adapters and not plan.merge_adapters:
        adapters = _adapters(model, plan)
    return adapters, conversion


def _adapters(model: Any, plan: LoadPlan) -> Adapters:
    # peft is an extra, so this import may fail.
    from pytest_llmperf.engines.transformers.adapters import with_adapters  # noqa: PLC0415

    return with_adapters(model, plan)


def _content_hash(source: SourceModel, adapters: Adapters | None) -> str:
    if adapters is None:
        return source.content_hash
    adapter_hashes = [file.content_hash for file in adapters.files]
    return hash_value({"base": source.content_hash, "adapters": adapter_hashes})


def _assistant(measured: ModelOnDevice) -> ModelOnDevice | None:
    plan = assistant_plan(measured.plan)
    if plan is None:
        return None
    assistant = load(plan)
    require_same_tokens(
        measured.plan,
        (measured.model, measured.tokenizer),
        (assistant.model, assistant.tokenizer),
    )
    return assistant


def _quantized(model: Any, quantizer: Quantizer, plan: LoadPlan) -> Conversion:
    with load_errors(plan, f"its quantization by {plan.quantization!r}"):
        return quantizer.quantize(model)


def _known_kind(plan: LoadPlan) -> str:
    kind = plan.model.kind
    if kind not in _LOADERS:
        raise LoadError(
            f"model {plan.model.name!r} is of kind {kind!r}; "
            f"this engine loads {', '.join(_LOADERS)}."
        )
    return kind


def _from_arch(plan: LoadPlan, device: torch.device) -> SourceModel:
    name = plan.model.location
    published = ARCHITECTURES[name].dtype
    drawn_on, home = _drawn_on(plan, device)
    quantizer = Quantizer(plan, device) if _quantized_early(plan) else None
    with load_errors(plan, f"architecture {name!r}"):
        model = arch.build(
            name,
            dtype=weights_dtype(plan, published),
            device=drawn_on,
            seed=plan.seed,
            attention=plan.attention,
            converter=quantizer,
            home=home,
        )
        conversion = None if quantizer is None else quantizer.finish(model)
    return SourceModel(
        model=model,
        tokenizer=None,
        content_hash=arch.content_hash(name, drawn_on, plan.seed),
        checkpoint_dtype=published,
        conversion=conversion,
    )


def _drawn_on(plan: LoadPlan, device: torch.device) -> tuple[torch.device, torch.device | None]:
    """Return where random weights are drawn, and where they go if that is another device."""
    if plan.offload is None:
        return device, None
    return torch_device(plan.device), device


_LOADERS: dict[str, Callable[[LoadPlan, torch.device], SourceModel]] = {
    "builtin": from_builtin,
    "folder": from_folder,
    "hub": from_hub,
    "gguf": from_gguf,
    "arch": _from_arch,
    "factory": from_factory,
}


def _for_inference(model: Any) -> Any:
    return model.eval().requires_grad_(requires_grad=False)


def _wait_until_idle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _left_padded(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase | None:
    """Pad on the left, since decoders continue at the right end.

    A tokenizer without a pad token pads with its end token.
    """
    if tokenizer is not None:
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _neutral_generation(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Decode greedily and without penalties, and keep the special tokens.

    A checkpoint's own sampling defaults would change what is measured.
    """
    config = model.config.get_text_config()
    # transformers has no stubs for GenerationConfig.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=padding_id(config, tokenizer),
    )


def _disable_progress_bars() -> None:
    """Turn progress bars off: they are for people at a terminal, and a worker's output is a log."""
    # transformers has no stubs for this function.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
