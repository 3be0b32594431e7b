"""What is really loaded, as the worker describes it, and what a strategy promised.

Comparing the two is pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct, field

from pytest_llmperf.core.misspelt import Suggests

OWN_TENSOR_PARALLEL = "pytest-llmperf"
"""Name of this project's tensor parallelism, as `Effective.tensor_parallel` has it."""


PLAIN_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
"""Dtypes that are not quantized."""


LARGE_SHARE = 0.05
"""What a strategy must not pass over, as a share of the elements of a model's matrices."""


class TensorGroup(Struct, frozen=True, kw_only=True):
    """Parameters or buffers that share dtype and device.

    Tensor subclasses are counted by their inner storage. `fixed_dtype` says that the architecture
    itself keeps these in this dtype whatever is asked for (norms in float32, for example).
    `quantized` says that they are the weights, scales, zero points and tables of quantized linear
    layers. `kind` is "parameter", "buffer", "attribute" (held by neither, in a list for example),
    or "rest of a storage": memory that a smaller tensor keeps from being free. `bytes` counts each
    byte in memory once, whatever refers to it. `example` is the path of the first.
    """

    kind: str
    dtype: str
    device: str
    tensors: int
    elements: int
    bytes: int
    fixed_dtype: bool = field(default=False, name="kept")  # as stored records have it
    quantized: bool = field(default=False, name="quantised")  # as records of 0.1.0 spell it
    example: str = ""


class ComputeGroup(Struct, frozen=True, kw_only=True):
    """Modules whose products with weights were seen to be computed in one dtype.

    `output` is the dtype that they give out. `share` is of all products with weights, by their
    number, 0 to 1. `linear` says that the modules are linear layers, `fixed_dtype` that the
    architecture itself keeps them in this dtype. `example` is the path of the first.
    """

    dtype: str
    output: str
    modules: int
    share: float
    linear: bool
    fixed_dtype: bool = False
    example: str = ""


class LinearGroup(Struct, frozen=True, kw_only=True):
    """Linear layers that share a class and a storage dtype.

    `elements` counts logical weights, `bytes` what they occupy. `quantized` says that their weights
    are stored as integers or in 8-bit floats.
    """

    cls: str
    dtype: str
    layers: int
    elements: int
    bytes: int
    quantized: bool = field(default=False, name="quantised")  # as records of 0.1.0 spell it


class OtherMatrices(Struct, frozen=True, kw_only=True):
    """Matrices of one kind that are no linear layers, such as the fused experts of a mixture.

    `cls` is the module's class and the tensor's name, `example` the path of the first. `share` is
    of the elements of all matrices but embeddings, 0 to 1. `holder` says what holds them:
    "parameter", "buffer" or "attribute" (a list, for example); the last two were seen to be
    multiplied with. `fixed_dtype` says that the architecture itself keeps them in this dtype.
    """

    cls: str
    dtype: str
    tensors: int
    elements: int
    bytes: int
    share: float
    example: str
    holder: str = "parameter"
    fixed_dtype: bool = False

    def __str__(self) -> str:
        """Say it in words: '2 MixtralExperts.gate_up_proj, 64 % of the matrices, 2.1 MB …'."""
        percent = f"{100 * self.share:.0f} %"
        size = f"{percent} of the matrices, {self.bytes / 1e6:.3g} MB in {self.dtype}"
        return f"{self.tensors} {self.cls}, {size}, like {self.example}"


class LeftOut(Struct, frozen=True, kw_only=True):
    """Linear layers of one class that were not quantized, for one reason.

    `example` is the path of the first. `declared` says that the strategy part names them beforehand
    (the output head, a checkpoint's own list).
    """

    cls: str
    layers: int
    elements: int
    reason: str
    declared: bool
    example: str


class Quantized(Struct, frozen=True, kw_only=True):
    """What a quantization part did, counted from the layers that are there.

    `layers` and `elements` are of all linear layers, `converted` and `converted_elements` of those
    that are quantized. `formats` are their storage formats. `stored_bytes` are the bytes of the
    converted layers' weights, scales, zero points and tables by storage dtype, `analytic` the bytes
    that follow from their shapes. `loaded_as_linear` counts the subclasses of nn.Linear, by class,
    that were shown to compute the same and were loaded as nn.Linear.
    """

    part: str
    bits: int
    layers: int
    converted: int
    elements: int
    converted_elements: int
    formats: tuple[str, ...]
    stored_bytes: dict[str, int] = field(name="held")  # as stored records have it
    analytic: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    loaded_as_linear: dict[str, int] = {}

    @property
    def share(self) -> float:
        """Share of the weights of all linear layers that is quantized, 0 to 1."""
        return self.converted_elements / self.elements if self.elements else 0.0

    def __str__(self) -> str:
        """Say it in words.

        '210 of 211 linear layers are 8-bit, 78.9 % of their weights; left out: 1 Linear, …'.
        """
        return "; ".join(filter(None, (self._converted, self._loaded, self._left_out)))

    @property
    def _converted(self) -> str:
        return (
            f"{self.converted} of {self.layers} linear layers are {self.bits}-bit, "
            f"{self.share:.1%} of their weights"
        )

    @property
    def _loaded(self) -> str:
        counts = self.loaded_as_linear.items()
        return ", ".join(f"{n} {cls} loaded as Linear" for cls, n in counts)

    @property
    def _left_out(self) -> str:
        groups = [f"{group.layers} {group.cls}, {group.reason}" for group in self.left_out]
        return f"left out: {'; '.join(groups)}" if groups else ""


class Pruned(Struct, frozen=True, kw_only=True):
    """What pruning left, counted from the weights themselves.

    `asked` is the text of the part ("wanda:0.5"). The linear layers of the decoder blocks are
    counted; `left_out` names the other ones. `weights_before` are theirs before pruning, `weights`
    those that are there after it, and `zeros` those of them that are zero. `lowest` and `highest`
    are the shares that one layer lacks (of structured pruning: one block), and where. Of an N:M
    `pattern`, `broken_groups` of `groups` hold too many weights. `stored` is "dense", "smaller" or
    "2:4 compressed". `method` says how it was pruned: scores, calibration set with its hash and
    token count, seconds.
    """

    asked: str
    layers: int
    weights_before: int
    weights: int
    zeros: int
    lowest: float
    lowest_layer: str
    highest: float
    highest_layer: str
    left_out: tuple[str, ...] = ()
    pattern: str | None = None
    groups: int = 0
    broken_groups: int = 0
    stored: str = "dense"
    method: dict[str, str | int | float] = {}

    @property
    def sparsity(self) -> float:
        """Share of the weights that are gone: zero, or removed."""
        if not self.weights_before:
            return 0.0
        return 1.0 - (self.weights - self.zeros) / self.weights_before


class AdapterGroup(Struct, frozen=True, kw_only=True):
    """One adapter as the modules hold it, beside what its file holds.

    `layers` are the modules it sits in (for a merged one: those whose weights were seen to change
    by its product), `rank` the largest there. `tensors` are those of its file, `tensors_equal` how
    many of them the modules hold with equal values (in the modules' dtype). `content_hash` is of
    the file. An `active` adapter is one that a forward pass goes through unless it asks otherwise.
    `idle_layers` are those whose product is zero: it changes nothing there. `bypassed_layers` are
    those that a forward pass went past: it called the module around them, and not them.
    """

    name: str
    rank: int
    layers: int
    elements: int
    tensors: int
    tensors_equal: int
    content_hash: str
    active: bool
    merged: bool = False
    idle_layers: int = 0
    bypassed_layers: int = 0


class Shard(Struct, frozen=True, kw_only=True):
    """What one rank of a spread model holds.

    `device` names the device itself (a GPU by its UUID's hash), `backend` what the collectives go
    through. `bytes` are its parameters and buffers as counted; `whole_bytes` are those of the model
    on one device, `stage_bytes` those of this rank's layers on one device (of a pipeline; else the
    whole), and `kept_bytes` what of these the split gives every rank in full (norms; nothing under
    FSDP). `largest_layer_bytes` is that of one decoder layer, `load_peak_bytes` the most that was
    allocated while loading (None where the device cannot tell). `holds` says it in words.
    `left_whole` are the matrices that a tensor-parallel plan leaves whole on every rank, by path,
    with their bytes; `larger` says of which matrices a rank holds more than its share of the plan.
    """

    rank: int
    device: str
    backend: str
    bytes: int
    whole_bytes: int
    stage_bytes: int
    kept_bytes: int
    holds: str
    largest_layer_bytes: int = 0
    load_peak_bytes: int | None = None
    left_whole: dict[str, int] = {}
    larger: tuple[str, ...] = ()


class ServerSetting(Struct, frozen=True, kw_only=True):
    """One setting of a server: its value, and by what this is proved.

    `value` is "" where nothing proves it; `origin` is the path where the server says it, or the
    probe that shows it. `asked` is what its command or option `expect` asks for, "" where neither
    does.
    """

    name: str
    value: str = ""
    origin: str = ""
    asked: str = ""


class Effective(Suggests, Struct, frozen=True, kw_only=True):
    """What one worker holds and does, or what all the ranks of a spread model do together.

    `compute_dtype` is observed (that of most products with weights in a probe forward), not read
    from a config; `computes` has all of these products, where an engine sees them. `cache`,
    `compiled_graphs`, `assistance` and `batching` ("static", "continuous") are observed in the last
    run; before any run they are "" and 0. `adapters` are the names of those in force,
    `resident_adapters` all that the modules hold. `sparsity` is that of `pruned`; both are None
    where nothing was pruned. `shards` has one row a rank where there are several; `tensors` and
    `linears` are then those of all ranks together. `offloaded_bytes` are the weights that wait
    elsewhere ("cpu", "disk") while they are not used, `offloaded_at_once_bytes` the most of them
    that were on the device at one product of a forward pass. `reported_dtype` is of an engine that
    shows no tensors, a server: the dtype that it says it runs in, "" where it says none.
    `tensor_parallel` names the code that carries out tensor parallelism ("transformers 5.23.0",
    "pytest-llmperf"), and is "" where none does. `other_matrices` are those that are no linear
    layers. `stored_quantized` names what quantized layers that were not asked for: the checkpoint
    is stored so. `compiled_share` is the share of the products with weights that ran in compiled
    graphs in the last run, 0 to 1; None where nothing is compiled or an engine does not tell.
    `server_settings` are those of a server, proved or not.
    """

    engine: str
    model_class: str
    tensors: tuple[TensorGroup, ...]
    linears: tuple[LinearGroup, ...]
    compute_dtype: str
    autocast_dtype: str | None
    checkpoint_dtype: str | None
    attention: str
    cache: str
    compile_mode: str | None
    compiled_graphs: int
    decode_loop: str
    padding_side: str
    device: str
    ranks: int = 1
    shards: tuple[Shard, ...] = ()
    offloaded_bytes: dict[str, int] = {}
    adapters: tuple[str, ...] = ()
    resident_adapters: tuple[AdapterGroup, ...] = ()
    assistance: str = ""
    batching: str = ""
    sparsity: float | None = None
    pruned: Pruned | None = None
    # As records of 0.1.0 spell it.
    quantized: Quantized | None = field(default=None, name="quantised")
    reported_dtype: str | None = None
    tensor_parallel: str = ""
    other_matrices: tuple[OtherMatrices, ...] = ()
    notes: tuple[str, ...] = ()
    stored_quantized: str = ""
    computes: tuple[ComputeGroup, ...] = ()
    compiled_share: float | None = None
    offloaded_at_once_bytes: int = 0
    server_settings: tuple[ServerSetting, ...] = ()

    @property
    def unproved(self) -> tuple[str, ...]:
        """Names of the settings of a server that nothing proves."""
        return tuple(setting.name for setting in self.server_settings if not setting.value)

    @property
    def weights_bytes(self) -> int:
        """Bytes of parameters and buffers as they lie on the device."""
        return sum(group.bytes for group in self.tensors)

    @property
    def large_other_matrices(self) -> tuple[OtherMatrices, ...]:
        """Those that make more than a twentieth of the model's matrices: no router is as large.

        Those that hold integers or 8-bit floats are packed already, and are left out.
        """
        groups = (group for group in self.other_matrices if group.dtype in PLAIN_FLOATS)
        return tuple(group for group in groups if group.share > LARGE_SHARE)

    @property
    def also_read_bytes(self) -> int:
        """Bytes that a step multiplies with and that are no parameters."""
        groups = self.other_matrices
        return sum(group.bytes for group in groups if group.holder != "parameter")

    @property
    def parameter_bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of parameters for each storage dtype."""
        bytes_by_dtype: Counter[str] = Counter()
        for group in self.tensors:
            if group.kind == "parameter":
                bytes_by_dtype[group.dtype] += group.bytes
        return dict(bytes_by_dtype)


@dataclass(frozen=True)
class Promise:
    """One thing that a strategy part promises; `part` is its name.

    `broken` returns None when it holds, else a reason with counts. `when` is "loaded" (checked
    after loading) or "warm" (checked after warm-up: compilation, cache in use).
    """

    text: str
    broken: Callable[[Effective], str | None]
    when: str = "loaded"
    part: str = ""
