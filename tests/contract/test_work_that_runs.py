"""FLOPs and bytes of a step, of the kinds of models that people run, against independent counts.

FLOPs are those of torch's own counter, bytes those of the storages that a step's modules hold.
"""

from __future__ import annotations

import inspect

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support.kinds import KINDS, cached_run, counted_flops, tiny

from pytest_llmperf.core.trace import RequestTrace, TokenEvent
from pytest_llmperf.engines.transformers.accounting.cost import step_cost, weight_bytes_read
from pytest_llmperf.engines.transformers.accounting.forward_pass import EverythingOnce, one_token
from pytest_llmperf.engines.transformers.kv_cache import cache_seen
from pytest_llmperf.errors import InvalidRun

PROMPT = 40
ATTENTION = [name for name, kind in KINDS.items() if not kind.scan_layers]
STATES = [name for name, kind in KINDS.items() if kind.scan_layers]


def step_of(n_seen):
    """A request whose one decode step sees so many positions."""
    return RequestTrace(
        n_prompt_tokens=n_seen - 1, t_due_ns=0, events=(TokenEvent(1), TokenEvent(2))
    )


def decode_step(name):
    """The cost that is claimed of a step that sees 44 positions, and what torch's counter sees."""
    model = tiny(name)
    out = cached_run(model, PROMPT, 4)
    cost = step_cost(model, cache_seen(out.past_key_values), 1, "float32")
    n_seen = PROMPT + 4
    of_mamba = "cache_params" in inspect.signature(model.forward).parameters
    inputs = {"cache_params" if of_mamba else "past_key_values": out.past_key_values}
    counted = counted_flops(lambda: model(input_ids=torch.tensor([[7]]), **inputs))
    return model, cost, cost.step_flops(step_of(n_seen)), counted


@pytest.mark.parametrize("name", ATTENTION)
def test_the_flops_of_a_decode_step_are_those_that_torch_counts(name):
    """Windows, experts, latents and shared keys and values: each as its kind computes it."""
    _, _, claimed, counted = decode_step(name)
    assert claimed == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("name", STATES)
def test_the_flops_of_states_are_those_that_torch_counts_and_those_that_it_does_not(name):
    """The counter sees the product with C of a state, and nothing of its update.

    A convolution is counted at each of the positions that torch pads it to: two for a token.
    """
    model, cost, claimed, counted = decode_step(name)
    elements = cache_seen(cached_run(model, PROMPT, 4).past_key_values).recurrent_elements
    convolved = 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Conv1d))
    assert claimed - 3 * elements + convolved == pytest.approx(counted, rel=1e-9)
    assert cost.state_bytes > 0


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt-oss", "mixtral"])
def test_the_flops_of_a_prompt_are_those_that_torch_counts(name):
    """The counter's attention is not causal, and each layer's is over the whole prompt."""
    model = tiny(name)
    seen = cache_seen(cached_run(model, PROMPT, 2).past_key_values)
    cost = step_cost(model, seen, 1, "float32")
    in_windows = sum(w.attention_flops_per_token_per_position for w in cost.windows)
    everywhere = cost.attention_flops_per_token_per_position
    causal = (everywhere * PROMPT * (PROMPT + 1) / 2) + sum(
        w.attention_flops_per_token_per_position * w.seen_by_all(PROMPT) for w in cost.windows
    )
    not_causal = (everywhere + in_windows) * PROMPT**2
    ids = torch.arange(5, 5 + PROMPT).reshape(1, PROMPT)
    counted = counted_flops(lambda: model(input_ids=ids, logits_to_keep=1))
    assert cost.prompt_flops(PROMPT) - causal + not_causal == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3", "gpt-oss"])
def test_kv_bytes_are_those_of_the_window(name):
    """A step of a long text moves what the cache holds and the token's own position, no more."""
    model = tiny(name)
    out = cached_run(model, 400, 8)
    seen = cache_seen(out.past_key_values)
    cost = step_cost(model, seen, 1, "float32")
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    assert seen.bytes == held
    own = sum(window.kv_bytes_per_token for window in cost.windows)
    claimed = cost.cache_bytes(step_of(400 + 7))
    assert claimed == held + own
    naive = seen.bytes_per_position * 407
    assert naive > 1.5 * claimed


def test_state_bytes_are_read_and_written_however_long_the_text():
    model = tiny("mamba2")
    seen = cache_seen(cached_run(model, 40, 4, batch=2).past_key_values)
    layers = cached_run(model, 8, 2, batch=1).past_key_values.layers
    held = [state for layer in layers for state in layer.conv_states.values()]
    held += [state for layer in layers for state in layer.recurrent_states.values()]
    assert seen.state_bytes == sum(state.nbytes for state in held)
    cost = step_cost(model, seen, 2, "float32")
    assert cost.cache_bytes(step_of(10)) == cost.cache_bytes(step_of(1000)) == 2 * seen.state_bytes


def read_by_hand(model, skipped=()):
    """The bytes of all storages once, but for tables that are looked up: one row of each."""
    skip = {p.data_ptr() for module in skipped for p in module.parameters()}
    storages = {p.data_ptr(): p for p in model.parameters() if p.data_ptr() not in skip}
    head = model.get_output_embeddings()
    total = sum(p.nbytes for p in storages.values())
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    for table in tables:
        is_looked_up = table.weight is not head.weight and table.weight.data_ptr() in storages
        total -= table.weight[1:].nbytes if is_looked_up else 0
    return total


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "mamba", "mamba2", "falcon-h1"])
def test_the_bytes_of_a_step_are_those_of_its_storages(name):
    model = tiny(name)
    assert weight_bytes_read(model, 1) == read_by_hand(model)


def test_a_text_reads_nothing_of_a_vision_tower():
    """The tower is on the device, and no step of a text enters it."""
    model = tiny("gemma3-vision")
    tower = [model.model.vision_tower, model.model.multi_modal_projector]
    claimed = weight_bytes_read(model, 1)
    assert claimed == read_by_hand(model, skipped=tower)
    assert claimed < weight_bytes_read(model, 1, EverythingOnce())
    passed = one_token(model)
    assert not any(passed.runs(module) for module in tower[0].modules())


def test_a_layer_that_is_shared_counts_as_often_as_it_runs():
    """Four layers share one MLP: weights once in memory, four times in a step."""
    apart, shared = tiny("llama"), tiny("llama")
    layers = shared.model.layers
    for layer in layers:
        layer.mlp = layers[0].mlp
    cache = cache_seen(cached_run(shared, 8, 2).past_key_values)
    ours, theirs = (step_cost(model, cache, 1, "float32") for model in (shared, apart))
    assert ours.flops_per_token == theirs.flops_per_token
    assert ours.weight_bytes_read == theirs.weight_bytes_read
    once = step_cost(shared, cache, 1, "float32", EverythingOnce())
    mlp = sum(p.nbytes for p in layers[0].mlp.parameters())
    assert ours.weight_bytes_read - once.weight_bytes_read == 3 * mlp


def test_weights_that_are_tied_between_modules_count_as_often_as_they_run():
    """The same with two modules that hold one tensor: the counter of calls is each module's own."""
    tied = tiny("llama")
    tied.model.layers[1].mlp.up_proj.weight = tied.model.layers[0].mlp.up_proj.weight
    cache = cache_seen(cached_run(tied, 8, 2).past_key_values)
    plain = step_cost(tiny("llama"), cache, 1, "float32")
    assert step_cost(tied, cache, 1, "float32") == plain


def test_a_run_that_leaves_no_cache_is_invalid():
    """Its steps computed the whole text again, which no count of a step can say."""
    with pytest.raises(InvalidRun, match="left NoneType as its cache"):
        cache_seen(None)
