"""Names of models: what a name means, the models that have names here, and their size.

Nothing heavy is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan, ModelKind, ModelRef
from pytest_llmperf.core.quantization import Scheme, scheme_of
from pytest_llmperf.engines.models.architectures import ARCHITECTURES, BUILTIN, Architecture, Config
from pytest_llmperf.engines.models.paths import (
    existing,
    exists,
    kind_of_path,
    looks_like_path,
    require_no_folder_of,
)
from pytest_llmperf.engines.models.quantized_size import (
    Shapes,
    checkpoint_bytes,
    folder_linear_shapes,
    linear_shapes,
    quantized_bytes,
)
from pytest_llmperf.engines.models.safetensors_header import folder_elements
from pytest_llmperf.errors import UsageError, did_you_mean

DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}

WRITTEN_BYTES = 2**30
"""Architectures up to this size are written out with the weights that every engine gives them.

Larger ones get vLLM's own random weights, made on the device: nothing but speed and memory is asked
of them. transformers' tensor parallelism, which reads files, refuses them.
"""


_KINDS_OF_NAMES = (
    "A model is a built-in name, 'arch:NAME' (random weights), a folder with a config.json, "
    "a .gguf file, 'pkg.mod:build', or a Hugging Face id like 'org/name'."
)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_ref(
    name: str,
    *,
    trust_remote_code: bool = False,
    revision: str | None = None,
    root: Path | None = None,
) -> ModelRef:
    """Return what `name` means.

    Looks at the file system for folders and files, never at the network: below `root`, the
    project's, where one is given, then in the working directory. Raises UsageError.
    """
    kind, location = _classify(name, root)
    return ModelRef(
        name=name,
        kind=kind,
        location=location,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )


def published_architecture(model: ModelRef) -> Architecture | None:
    """Return the architecture of a model that is in a table here, else None."""
    if model.kind == "arch":
        return ARCHITECTURES[model.location]
    return BUILTIN[model.location].architecture if model.kind == "builtin" else None


def _classify(name: str, root: Path | None) -> tuple[ModelKind, str]:
    if name in BUILTIN:
        return "builtin", name
    prefix, _, rest = name.partition(":")
    if prefix == "scripted":
        return "scripted", rest
    if prefix == "arch":
        return "arch", _known_architecture(rest)
    return _classify_path_or_id(name, root)


def _classify_path_or_id(name: str, root: Path | None) -> tuple[ModelKind, str]:
    path = existing(name, root)
    if (name and exists(path)) or looks_like_path(name):
        return _classify_path(name, path)
    if _FACTORY.fullmatch(name):
        return "factory", name
    hub_id = _hub_id(name)
    if root is not None:
        require_no_folder_of(name, root)
    return "hub", hub_id


def _known_architecture(name: str) -> str:
    if name in ARCHITECTURES:
        return name
    raise UsageError(_unknown_architecture(name))


def _unknown_architecture(name: str) -> str:
    near = did_you_mean(
        name, ARCHITECTURES, otherwise=f"Architectures: {', '.join(ARCHITECTURES)}."
    )
    return f"model 'arch:{name}': architecture {name!r} is not known.{near}"


def _classify_path(name: str, path: Path) -> tuple[ModelKind, str]:
    if not exists(path):
        raise UsageError(
            f"model {name!r}: there is no file or folder {path.absolute()}. {_KINDS_OF_NAMES}"
        )
    if path.is_file() and path.suffix == ".gguf":
        return "gguf", str(path.absolute())
    if (path / "config.json").is_file():
        return "folder", str(path.absolute())
    raise UsageError(
        f"model {name!r}: {path.absolute()} is {kind_of_path(path)}. {_KINDS_OF_NAMES}"
    )


def _hub_id(name: str) -> str:
    """Return `name`, unless it cannot be a hub id or is all but the name of a model we have."""
    suggestion = _suggestion(name)
    if _can_be_on_the_hub(name, suggestion):
        return name
    raise UsageError(f"model {name!r} is not known. {_hint(suggestion)}")


def _can_be_on_the_hub(name: str, suggestion: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and ("/" in name or not suggestion)


def _hint(suggestion: str) -> str:
    """Return the model that is perhaps wanted, else all models and kinds of names there are."""
    if suggestion:
        return f"Did you mean {suggestion!r}?"
    return f"Models: {', '.join(_full_names().values())}. {_KINDS_OF_NAMES}"


def _full_names() -> dict[str, str]:
    """Return each name of a table as it stands there -> as it is written for a model."""
    return {name: name for name in BUILTIN} | {name: f"arch:{name}" for name in ARCHITECTURES}


def _suggestion(name: str) -> str:
    """Return the full name of the model here that `name` is close to; empty without one."""
    full_names = _full_names()
    near = did_you_mean(name.lower(), full_names)
    return next((full for bare, full in full_names.items() if repr(bare) in near), "")


def predict(plan: LoadPlan) -> int | None:
    """Return the least bytes that loading `plan` takes on its devices together.

    These are the weights alone; None if that cannot be told.
    """
    plain_bytes = predicted_weights_bytes(plan.model, plan.weights_dtype)
    if plan.quantization is None:
        return plain_bytes
    scheme = scheme_of(plan.quantization)
    if scheme.path:
        return checkpoint_bytes(Path(scheme.path)) or None
    return _quantized_here(plan, scheme, plain_bytes, computed_dtype(plan))


def _quantized_here(
    plan: LoadPlan, scheme: Scheme, plain_bytes: int | None, dtype: str | None
) -> int | None:
    """Return the bytes of plain weights once their linear layers are quantized."""
    shapes = _linear_shapes(plan.model)
    if not (plain_bytes and shapes and dtype):
        return None
    return quantized_bytes(plain_bytes, dtype, shapes, scheme, plan.device_kind)


def predicted_weights_bytes(model: ModelRef, dtype: str) -> int | None:
    """Return the bytes of the parameters in `dtype` ("auto": the checkpoint's).

    None where that follows neither from the name nor from files.
    """
    architecture = published_architecture(model)
    if architecture is not None:
        return _published_bytes(architecture, dtype)
    if model.kind != "folder":
        return None
    return _folder_bytes(Path(model.location), dtype) or None


def _published_bytes(architecture: Architecture, dtype: str) -> int:
    stored_dtype = architecture.dtype if dtype == "auto" else dtype
    return parameter_count(architecture) * DTYPE_BYTES[stored_dtype]


def _folder_bytes(folder: Path, dtype: str) -> int:
    elements = folder_elements(folder)
    if dtype != "auto":
        return sum(elements.values()) * DTYPE_BYTES[dtype]
    return _bytes_as_stored(elements)


def _bytes_as_stored(elements: Mapping[str, int]) -> int:
    return sum(count * DTYPE_BYTES.get(stored, 1) for stored, count in elements.items())


def computed_dtype(plan: LoadPlan) -> str | None:
    """Return the dtype of what is not quantized: asked for, or that of the checkpoint.

    None where that cannot be told beforehand.
    """
    if plan.weights_dtype != "auto":
        return plan.weights_dtype
    architecture = published_architecture(plan.model)
    if architecture is not None:
        return architecture.dtype
    return _folder_dtype(Path(plan.model.location)) if plan.model.kind == "folder" else None


def _folder_dtype(folder: Path) -> str | None:
    """Return the floating dtype of most elements of a checkpoint."""
    elements = folder_elements(folder)
    floating = [dtype for dtype in elements if dtype in DTYPE_BYTES]
    return max(floating, key=lambda dtype: elements[dtype], default=None)


def _linear_shapes(model: ModelRef) -> Shapes:
    architecture = published_architecture(model)
    if architecture is not None:
        return linear_shapes(architecture.model_type, architecture.config)
    return folder_linear_shapes(Path(model.location)) if model.kind == "folder" else []


def parameter_count(architecture: Architecture) -> int:
    """Return the parameters of an architecture, tied ones once.

    They are computed of a llama or falcon; falcons have tied embeddings and no biases.
    """
    if architecture.parameters:
        return architecture.parameters
    config = architecture.config
    vectors = _norm_vectors(config) + _embedding_rows(config)
    return _linear_parameters(architecture) + vectors * int(config["hidden_size"])


def _linear_parameters(architecture: Architecture) -> int:
    shapes = linear_shapes(architecture.model_type, architecture.config)
    return sum(math.prod(shape) for shape in shapes)


def _norm_vectors(config: Config) -> int:
    """Count the vectors of the hidden size that a model's norms hold.

    A llama has two norms of one vector in each layer and one at the end. A falcon's have two
    vectors each; its layers have two norms in the newer architecture, else one.
    """
    layers = int(config["num_hidden_layers"])
    if "new_decoder_architecture" not in config:
        return 2 * layers + 1
    return 2 * ((2 if config["new_decoder_architecture"] else 1) * layers + 1)


def _embedding_rows(config: Config) -> int:
    """Count the rows of the input table, and of the output head where it is not the same."""
    tables = 1 if config.get("tie_word_embeddings", True) else 2
    return tables * int(config["vocab_size"])
