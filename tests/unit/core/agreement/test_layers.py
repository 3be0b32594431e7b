"""Which layer: asked for only where a rule does not hold, and told in the claim and the report."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from support.compared_prompts import broken, prompt

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.layers import LayerFigure, Layers, ModuleError, figures
from pytest_llmperf.core.agreement.rules import parse_rule
from pytest_llmperf.core.verdicts.judge import claims
from pytest_llmperf.errors import WorkerError
from pytest_llmperf.session.agreement import LONGEST_LOOKED_AT, layers_of
from pytest_llmperf.wire.commands import WriteLayers
from pytest_llmperf.wire.results import LayersRead

NOISE = (ModuleError("m.0", 0.001), ModuleError("m.1", 0.002), ModuleError("head", 0.003))
ERRORS = (ModuleError("m.0", 0.0015), ModuleError("m.1", 0.5), ModuleError("head", 0.4))


def layers(errors=ERRORS, floors=NOISE, dtype="bfloat16", **more):
    return Layers(layers=figures(errors, floors), dtype=dtype, **more)


def test_the_first_that_is_out_is_named_and_all_figures_are_listed():
    inside = figures((ModuleError("m.1.q", 0.6),), (ModuleError("m.1.q", 0.001),))
    found = layers(inside=inside)
    assert str(found) == (
        "the first layer out of the noise floor of bfloat16 is m.1: error 0.5, noise floor 0.002; "
        "inside of it first m.1.q: error 0.6, noise floor 0.001"
    )
    assert found.lines()[1:] == [
        "  m.0: error 0.0015, noise floor 0.001",
        "  m.1: error 0.5, noise floor 0.002  <- out",
        "    m.1.q: error 0.6, noise floor 0.001  <- out",
        "  head: error 0.4, noise floor 0.003  <- out",
    ]
    assert found.summary()["first"] == "m.1"


@pytest.mark.parametrize(
    ("dtype", "error", "floor", "is_out"),
    [
        ("bfloat16", 0.019, 0.010, False),  # twice the floor is noise
        ("bfloat16", 0.021, 0.010, True),
        ("bfloat16", 0.003, 0.0, False),  # one step of the dtype is noise
        ("bfloat16", 0.005, 0.0, True),
        ("float32", 9e-6, 0.0, False),
        ("float32", 2e-5, 0.0, True),
        ("float32", math.inf, 0.0, True),
        ("float32", math.nan, 0.0, True),
    ],
)
def test_noise_is_told_from_damage_by_the_floor_and_by_the_dtype(dtype, error, floor, is_out):
    figure = LayerFigure(name="m", error=error, floor=floor)
    assert Layers(dtype=dtype).leaves_floor(figure) == is_out


def test_where_no_layer_is_out_it_is_the_loop():
    assert str(layers(errors=NOISE)).endswith("what differs is the loop, its cache or its batching")


def agreed(rows, look):
    return Agreement(tuple(rows), rule=parse_rule("exact"), look=look)


def never():
    raise AssertionError("the layers were looked at")


def test_nothing_is_looked_at_where_the_rule_holds():
    """It costs passes of both models: neither the claim, nor the report, nor a record asks."""
    found = agreed(map(prompt, range(3)), never)
    with claims():
        assert found.ok
    found.summary()
    assert "layers" not in found.report()


def test_a_rule_that_does_not_hold_has_the_layer_in_its_claim_and_then_in_the_report():
    asked = []

    def look():
        asked.append(1)
        return layers()

    found = agreed(map(broken, range(3)), look)
    assert "layers" not in found.report()
    with claims():
        claim = found.ok
        assert not claim
    assert "the first layer out of the noise floor of bfloat16 is m.1" in claim.detail
    assert "m.1: error 0.5, noise floor 0.002  <- out" in found.report()
    assert asked == [1]


def test_it_can_be_asked_for_where_the_rule_holds():
    assert agreed(map(prompt, range(3)), layers).layers.first.name == "m.1"


class Model:
    """Answers with the errors of the whole model, or with those inside of one layer."""

    def __init__(self, whole, inside, error=None):
        self.opened = SimpleNamespace(effective=SimpleNamespace(compute_dtype="bfloat16"))
        self.whole, self.inside, self.error = whole, inside, error
        self.asked = []

    def call(self, command):
        self.asked.append(command)
        if self.error:
            raise self.error
        return LayersRead(errors=self.inside if command.inside else self.whole)


def look_at(candidate, reference, tmp_path, rows=None):
    rows = list(map(broken, range(6))) if rows is None else rows
    return layers_of(rows, tmp_path / "r.ref", lambda: candidate, lambda: reference)


def test_a_session_looks_inside_of_the_first_layer_that_is_out(tmp_path):
    candidate = Model(ERRORS, (ModuleError("m.1.q", 0.6),))
    reference = Model(NOISE, (ModuleError("m.1.q", 0.001),))
    found = look_at(candidate, reference, tmp_path)
    assert (found.first.name, found.first_inside.name) == ("m.1", "m.1.q")
    assert [command.inside for command in reference.asked] == ["", "m.1"]
    assert isinstance(reference.asked[0], WriteLayers)
    assert reference.asked[0].dtype == "bfloat16"
    assert len(reference.asked[0].prompts) == 3


def test_a_head_has_no_layers_inside(tmp_path):
    head = (*ERRORS[:1], NOISE[1], ERRORS[2])
    candidate = Model(head, ())
    found = look_at(candidate, Model(NOISE, ()), tmp_path)
    assert (found.first.name, found.inside, len(candidate.asked)) == ("head", (), 1)


def test_an_engine_that_shows_no_layers_says_so_and_the_agreement_stays(tmp_path):
    refusing = Model((), (), error=WorkerError("this engine does not show its layers"))
    found = look_at(refusing, Model(NOISE, ()), tmp_path)
    assert str(found) == "no layer was looked at: this engine does not show its layers"


def test_long_prompts_are_not_looked_at(tmp_path):
    """The outputs of all layers at a thousand positions would be gigabytes of a large model."""
    from msgspec.structs import replace

    rows = [replace(broken(i), n_prompt_tokens=LONGEST_LOOKED_AT + i) for i in range(4)]
    candidate = Model(NOISE, ())
    look_at(candidate, Model(NOISE, ()), tmp_path, rows)
    assert candidate.asked[0].prompts == (0,)
