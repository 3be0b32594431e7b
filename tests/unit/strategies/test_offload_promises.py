"""Weights that wait elsewhere: what lies where between and during forward passes."""

from __future__ import annotations

import pytest

from pytest_llmperf.core.effective import Effective, TensorGroup
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.strategies import parse

MB = 10**6
PLAN = LoadPlan(model=ModelRef(name="m", kind="folder", location="m"))


def group(kind, n_bytes, device="cpu"):
    return TensorGroup(
        kind=kind, dtype="float32", device=device, tensors=1, elements=n_bytes // 4, bytes=n_bytes
    )


def broken(*, waiting=100 * MB, place="disk", at_once=9 * MB, tensors=()):
    effective = Effective(
        engine="transformers",
        model_class="M",
        tensors=(group("parameter", 0, "meta"), *tensors),
        linears=(),
        compute_dtype="float32",
        autocast_dtype=None,
        checkpoint_dtype="float32",
        attention="sdpa",
        cache="",
        compile_mode=None,
        compiled_graphs=0,
        decode_loop="",
        padding_side="left",
        device="cpu",
        offloaded_bytes={place: waiting},
        offloaded_at_once_bytes=at_once,
    )
    promises = parse("fp32+offload-disk").promises(PLAN)
    return next(p for p in promises if p.part == "offload-disk").broken(effective)


def test_weights_that_come_one_layer_at_a_time_are_offloaded():
    """Small tables may stay."""
    assert broken(tensors=(group("buffer", MB),)) is None


@pytest.mark.parametrize("kind", ["parameter", "buffer", "attribute"])
def test_what_stays_on_the_device_counts_whatever_holds_it(kind):
    """Four fifths of the weights in buffers: the fifth that moves is not enough."""
    reason = broken(waiting=20 * MB, at_once=2 * MB, tensors=(group(kind, 80 * MB),))
    assert reason == (f"20.000 MB of weights wait in disk; not moved: 80.000 MB ({kind}, cpu)")


def test_weights_in_another_place_are_not_in_this_one():
    """They were asked for on disk."""
    assert "0.000 MB of weights wait in disk" in broken(place="cpu")


def test_weights_that_are_all_there_during_a_pass_are_not_offloaded():
    """They come once, and none goes before the last was used."""
    assert broken(at_once=99 * MB) == (
        "99.000 of 100.000 MB of weights were on the device at once during a forward pass"
    )
