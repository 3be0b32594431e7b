"""Answers questions about GPUs while packages are imported, so that no import opens one.

torchao asks torch for the compute capability of the GPU when it is imported, and torch opens the
device to answer. The driver's management library would open it, too, and leave a thread behind. A
fork server may have neither. So a process of its own asks the library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import torch

_DRIVER = Path("/dev/nvidiactl")
_CODE = "from pytest_llmperf.instruments.nvml import print_capabilities as p; p()"
_ASK_S = 60.0

Capability = tuple[int, int]


@contextmanager
def unopened_gpus() -> Iterator[None]:
    """Have torch answer how many GPUs there are, and what they can do, without opening them.

    Whatever else is asked of a GPU meanwhile is an AttributeError, or opens it. What a package
    keeps, a function or an answer, is torch's own when the block has ended. Does nothing where
    there is no driver, or where the GPUs differ: then one has to be opened to know which is meant.
    """
    capabilities = _asked_capabilities() if _DRIVER.exists() else ()
    if len(set(capabilities)) != 1:
        yield
        return
    n_visible = 0 if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else len(capabilities)
    properties = partial(GpuProperties, torch.cuda.get_device_properties, capabilities[0])
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: n_visible > 0,
        "device_count": lambda: n_visible,
        "current_device": lambda: 0,
        "get_device_capability": lambda _device=None: capabilities[0],
        "get_device_properties": properties,
    }
    with ExitStack() as patches:
        patches.enter_context(_IMPORTS.answered())
        for name, answer in answers.items():
            asked = _IMPORTS.answering(answer, getattr(torch.cuda, name))
            patches.enter_context(patch.object(torch.cuda, name, asked))
        yield


class _Imports:
    """Whether packages that are being imported get our answers, or torch's again."""

    def __init__(self) -> None:
        self.are_running = False

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Give our answers, also to what was kept in an earlier block.

        Afterwards torch answers, and its compiler asks again which device is current in each rank.
        """
        self.are_running = True
        try:
            yield
        finally:
            self.are_running = False
            interface = sys.modules.get("torch._dynamo.device_interface")
            if interface is not None:
                interface.caching_worker_current_devices.pop("cuda", None)

    def answering(
        self, answer: Callable[..., Any], torchs_own: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return a function that is `answer` inside of the block and torch's own after it.

        torch's compiler keeps functions of `torch.cuda` under names of its own.
        """

        def ask(*arguments: Any, **options: Any) -> Any:
            answering = answer if self.are_running else torchs_own
            return answering(*arguments, **options)

        return ask


_IMPORTS = _Imports()


class GpuProperties:
    """The properties of a GPU that nobody has opened: its compute capability.

    torch's compiler keeps what it was told. So the other properties are asked for when somebody
    needs them after the block, which opens the device.
    """

    def __init__(
        self,
        ask_torch: Callable[..., Any],
        capability: Capability,
        device: object = None,
    ) -> None:
        self.major, self.minor = capability
        self._ask_torch = ask_torch
        self._device = device

    def __getattr__(self, name: str) -> Any:
        """Return what torch says of the device. Raises AttributeError inside of the block."""
        if name.startswith("__") or _IMPORTS.are_running:
            raise AttributeError(f"{name!r} of a GPU is not known before the GPU is opened")
        return getattr(self._ask_torch(self._device), name)


@cache
def _asked_capabilities() -> tuple[Capability, ...]:
    """Return the compute capability of each GPU, which another process has asked for."""
    answer = subprocess.run(  # noqa: S603 - this interpreter and our own code
        [sys.executable, "-c", _CODE], capture_output=True, check=False, timeout=_ASK_S
    )
    if answer.returncode:
        return ()
    capabilities: tuple[Capability, ...] = msgspec.json.decode(
        answer.stdout, type=tuple[Capability, ...]
    )
    return capabilities
