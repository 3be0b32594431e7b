"""What is to be loaded, as values: a model, and the load plan that the strategy parts fill in."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from msgspec import Struct

from pytest_llmperf.core.misspelt import Suggests

ANY: frozenset[object] = frozenset({"any"})
"""As an engine's values for a field of a plan: any value, to be judged by its `refusal`.

Compared by identity.
"""

ModelKind = Literal["hub", "folder", "gguf", "builtin", "arch", "factory", "scripted"]


class ModelRef(Struct, frozen=True, kw_only=True):
    """A model as the user named it, and where it is found.

    `location` is a hub id, an absolute path, or a name in a table.
    """

    name: str
    kind: ModelKind
    location: str
    revision: str | None = None
    trust_remote_code: bool = False


class LoadPlan(Suggests, Struct, frozen=True, kw_only=True):
    """Everything that decides what a worker loads. Hashable: equal plans share one loaded model.

    dtypes are torch's names ("float32", "float16", "bfloat16"), or "auto" for the checkpoint's own.
    `compile` is a torch.compile mode ("default", "reduce-overhead", "max-autotune") or None.
    `quantization` and `pruning` are the text of their strategy part ("nf4", "gptq:/models/q",
    "wanda:0.5"), or None. `adapters` are absolute folders as they were named, the first in force;
    `merge_adapters` folds it into the weights. `assist` is "prompt-lookup" or the name of a smaller
    model that proposes tokens, or None. `batching` is "continuous", or None for the engine's own
    way. `tp`, `fsdp`, `pp` and `dp` are numbers of devices, whose product `ranks` is; `tp_by` says
    who carries out tensor parallelism: the engine's "library", or this project's "own" code.
    `offload` is "cpu" or "disk", where weights wait, or None.
    """

    model: ModelRef
    engine: str = "transformers"
    device: str = "cpu"
    ranks: int = 1
    strategy: str = "auto"
    weights_dtype: str = "auto"
    autocast_dtype: str | None = None
    attention: str | None = None
    cache: Literal["dynamic", "static", "int8", "fp8"] = "dynamic"
    compile: str | None = None
    quantization: str | None = None
    pruning: str | None = None
    adapters: tuple[str, ...] = ()
    merge_adapters: bool = False
    assist: str | None = None
    batching: Literal["continuous"] | None = None
    tp: int = 1
    tp_by: Literal["library", "own"] = "library"
    fsdp: int = 1
    pp: int = 1
    dp: int = 1
    offload: Literal["cpu", "disk"] | None = None
    options: tuple[tuple[str, str | int | float | bool], ...] = ()
    seed: int = 0

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The adapters' names: those of their folders."""
        return tuple(PurePath(folder).name for folder in self.adapters)

    @property
    def device_kind(self) -> str:
        """The kind of the device without its number: "cpu" or "cuda"."""
        return self.device.partition(":")[0]

    @property
    def spread(self) -> int:
        """Devices that the parallel parts of the strategy take together."""
        return self.tp * self.fsdp * self.pp * self.dp

    def option(
        self, name: str, default: str | float | bool | None = None
    ) -> str | int | float | bool | None:
        """The engine option `name`, or `default`."""
        return dict(self.options).get(name, default)
