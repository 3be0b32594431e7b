"""Which attention each decoder block used, from the calls of a forward pass."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pytest_llmperf.engines.transformers.observed.calls import ATTENTION, Calls

SDPA, EAGER = "sdpa", "eager"
_OTHER_KINDS = re.compile("linear|mamba|recurrent|conv|ssm", re.IGNORECASE)
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type")


def attention_in_use(model: Any, calls: Calls) -> str:
    """Return the attention of the decoder blocks: one name, or the count of each.

    A block that called torch's attention is "sdpa", one that wrote a softmax over scores is "eager"
    and one that did neither is what its configuration says; that is never "sdpa", which shows. A
    block that a configuration says to attend in another way (linear, state space) is left out.
    """
    used = _by_block(model, calls)
    if not used:
        return _without_blocks(model, calls)
    names = set(used.values())
    if len(names) == 1:
        return names.pop()
    return ", ".join(_counted(name, used) for name in sorted(names))


def _without_blocks(model: Any, calls: Calls) -> str:
    """Return the attention of a model in which no block was seen to attend."""
    modules = [m for m in model.modules() if ATTENTION.search(type(m).__name__)]
    if not modules and not _heads(model):
        return "none"
    called = bool(calls.sdpa)
    return ", ".join(sorted(name if called else _without_sdpa(name) for name in _declared(model)))


def block_lists(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """Return path and modules of the lists as long as the config says, outermost first."""
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]


def _by_block(model: Any, calls: Calls) -> dict[str, str]:
    """Return what each block that was called and that attends used, by its path."""
    blocks = {
        f"{path}.{index}": block
        for path, modules in block_lists(model)
        for index, block in enumerate(modules)
        if f"{path}.{index}" in calls.modules and _attends(model, index)
    }
    sdpa, scores = (_within(blocks, paths) for paths in (calls.sdpa, calls.scores))
    used: dict[str, str] = {}
    for path, block in blocks.items():
        name = _name(block, model, called=sdpa[path] > 0, wrote=scores[path] > 0)
        if name:
            used[path] = name
    return used


def _name(block: nn.Module, model: Any, *, called: bool, wrote: bool) -> str:
    """Return the attention of one block; empty for one that says nothing of attention."""
    if called and wrote:
        return f"{EAGER} and {SDPA}"
    if called or wrote:
        return SDPA if called else EAGER
    has_module = any(ATTENTION.search(type(module).__name__) for module in block.modules())
    if not has_module and not _heads(model):
        return ""
    declared = _implementations(block.modules()) or _declared(model)
    return ", ".join(sorted(_without_sdpa(name) for name in declared))


def _without_sdpa(name: str) -> str:
    """Return what a block without a call of torch's attention uses, where it says `name`."""
    return EAGER if name == SDPA else name


def _within(blocks: Iterable[str], counts: Mapping[str, int]) -> dict[str, int]:
    """Return how many of the calls were in each block, by the path of the module that called."""
    within: dict[str, int] = defaultdict(int)
    prefixes = {f"{path}.": path for path in blocks}
    for module, count in counts.items():
        for prefix, path in prefixes.items():
            if f"{module}.".startswith(prefix):
                within[path] += count
    return within


def _attends(model: Any, index: int) -> bool:
    """Whether a block is one of attention, where the config says the kind of each."""
    config = model.config.get_text_config()
    for attribute in _KINDS_OF_LAYERS:
        kinds = getattr(config, attribute, None)
        if isinstance(kinds, (list, tuple)) and index < len(kinds):
            return not _OTHER_KINDS.search(str(kinds[index]))
    return True


def _heads(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "num_attention_heads", 0) or 0)


def _declared(model: Any) -> set[str]:
    """Return the implementations that attention modules' configs name, or the model's."""
    modules = [m for m in model.modules() if ATTENTION.search(type(m).__name__)]
    return _implementations(modules) or _implementations([model]) or {"unknown"}


def _implementations(modules: Iterable[nn.Module]) -> set[str]:
    names = (
        getattr(getattr(module, "config", None), "_attn_implementation", None) for module in modules
    )
    return {name for name in names if name}


def _counted(name: str, used: Mapping[str, str]) -> str:
    paths = [path for path, other in used.items() if other == name]
    return f"{name} in {len(paths)} of {len(used)} blocks (like {paths[0]})"
