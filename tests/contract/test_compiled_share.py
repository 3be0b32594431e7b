"""'compile' is in effect where graphs run the step: not where they hold a small part of it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.generating import loaded, tiny_llama

from pytest_llmperf.engines.transformers import TransformersModel
from pytest_llmperf.engines.transformers.observed import compiled
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode

# torch's own, on its first compilation.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
WORK = Decode(batch=1, prompt_tokens=7, new_tokens=3)


@pytest.fixture(autouse=True)
def graphs_that_run_as_they_are(monkeypatch):
    """Dynamo makes the graphs; inductor, which takes half a minute for each, does not compile."""
    wrapper = torch._TorchCompileInductorWrapper
    monkeypatch.setattr(wrapper, "__call__", lambda _self, graph, _inputs: graph.forward)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run_compiled(model, strategy="fp32+compile"):
    """What is in effect after a run; `strategy` has the promises of a warm model."""
    asked = parse(strategy)
    plan = asked.apply(loaded(model).plan)
    session = TransformersModel(loaded(model, compile=plan.compile, cache=plan.cache))
    session.run(WORK, 0)
    effective = session.describe().effective
    promises = [promise for promise in asked.promises(plan) if promise.when == "warm"]
    return effective, promises


def without_dynamo(forward):
    return torch._dynamo.disable(forward)


class Mostly(transformers.LlamaForCausalLM):
    """Dynamo is kept out of all but one multiplication."""

    def forward(self, *args, **kwargs):
        out = torch._dynamo.disable(transformers.LlamaForCausalLM.forward)(self, *args, **kwargs)
        out.logits = out.logits * 1.0
        return out


def test_a_compiled_model_runs_in_graphs():
    """All of its products, in the prompt and in each step."""
    effective, promises = run_compiled(tiny_llama(layers=1))
    assert effective.compiled_share == pytest.approx(1.0)
    require_in_effect(effective, promises, "warm")


def test_a_model_that_is_compiled_but_for_its_layers_is_not():
    """The graph that there is multiplies no weights."""
    model = tiny_llama(layers=1)
    model.__class__ = Mostly
    effective, promises = run_compiled(model)
    assert effective.compiled_graphs >= 1
    assert effective.compiled_share == 0.0
    with pytest.raises(NotInEffect, match=r"0 % of the products .*graph breaks: "):
        require_in_effect(effective, promises, "warm")


def test_one_layer_of_two_outside_of_the_graphs_counts():
    """Its share is that of its weights."""
    model = tiny_llama(layers=2)
    layer = model.model.layers[1]
    layer.forward = without_dynamo(layer.forward)
    effective, promises = run_compiled(model)
    inside = sum(p.numel() for p in model.model.layers[0].parameters() if p.dim() > 1)
    inside += model.lm_head.weight.numel()
    outside = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
    assert effective.compiled_share == pytest.approx(inside / (inside + outside))
    with pytest.raises(NotInEffect, match="of the products with weights ran in compiled graphs"):
        require_in_effect(effective, promises, "warm")


def test_a_compiled_prompt_before_steps_that_are_not_compiled_is_not_enough():
    """Each forward pass counts: one of three ran in a graph."""
    model = tiny_llama(layers=1)
    whole, alone = type(model.model).forward, without_dynamo(type(model.model).forward)

    def forward(self, input_ids=None, **kwargs):
        chosen = whole if input_ids.shape[1] > 1 else alone
        return chosen(self, input_ids=input_ids, **kwargs)

    model.model.forward = forward.__get__(model.model)
    effective, promises = run_compiled(model)
    assert 0.1 < effective.compiled_share < 0.9
    with pytest.raises(NotInEffect, match="of the products with weights"):
        require_in_effect(effective, promises, "warm")


class ScaledHead(torch.nn.Linear):
    """Only the scaling of its weight is in a graph; the product is a kernel that is in none."""

    def forward(self, x):
        return without_dynamo(torch.nn.functional.linear)(x, self.weight * 0.5)


def test_a_weight_that_a_graph_only_scales_is_not_multiplied_there():
    """The head is the largest matrix of the model."""
    model = tiny_llama(layers=1)
    head = ScaledHead(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head = head
    effective, promises = run_compiled(model)
    matrices = sum(w.numel() for w in model.parameters() if w.dim() > 1)
    matrices -= model.model.embed_tokens.weight.numel()
    share = 1 - head.weight.numel() / matrices
    assert effective.compiled_share == pytest.approx(share, abs=0.02)
    with pytest.raises(NotInEffect):
        require_in_effect(effective, promises, "warm")


def test_what_goes_to_a_librarys_operator_may_be_multiplied_there():
    """Of the graph alone: scaling leads nowhere, an operator of a library counts."""
    graph = torch.fx.Graph()
    scaled, packed = graph.placeholder("scaled"), graph.placeholder("packed")
    graph.output((graph.call_function(torch.mul, (scaled, 0.5)),))
    assert not compiled._is_multiplied(scaled)
    view = graph.call_method("reshape", (packed, -1))
    assert not compiled._is_multiplied(packed)
    graph.call_function(library_product, (view,))
    assert compiled._is_multiplied(packed)


def library_product(tensor):
    return tensor
