"""Adapters on a tiny model: in force, told apart, switched, mixed in a batch, and merged.

They are refused where they do not fit.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from msgspec import structs
from safetensors.torch import load_file, save_file
from support.adapting import adapter, plan

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.loading import arch
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.transformers import TransformersEngine
from pytest_llmperf.engines.transformers import adapters as module
from pytest_llmperf.errors import LoadError, NotInEffect, UsageError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.strategies.adapters import switched
from pytest_llmperf.workloads import Decode, PromptSet

WORK = Decode(batch=2, prompt_tokens=8, new_tokens=6)
BASE = "arch:tiny-llama"


def model():
    return arch.build(
        "tiny-llama", dtype=torch.float32, device=torch.device("cpu"), seed=0, attention=None
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of one model, of rank 4 and 8."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        adapter(root / name, model(), seed=seed, rank=rank, base=BASE)
        for name, seed, rank in (("a", 1, 4), ("b", 2, 8))
    ]


@pytest.fixture(scope="module")
def both(folders):
    return TransformersEngine().open(plan(*folders))


@pytest.fixture(scope="module")
def outputs(folders):
    """What each adapter gives when it alone is loaded, and the base model."""
    alone = {
        folder.name: TransformersEngine().open(plan(folder)).run(WORK, 0).outputs_hash
        for folder in folders
    }
    return alone | {"base": TransformersEngine().open(plan()).run(WORK, 0).outputs_hash}


def promise(session, strategy: str, asked) -> None:
    require_in_effect(session.describe().effective, parse(strategy).promises(asked), "loaded")


def test_the_first_adapter_is_in_force_and_every_tensor_is_its_file_s(both, folders, outputs):
    effective = both.opened().effective
    assert effective.adapters == ("a",)
    assert [
        (g.name, g.rank, g.layers, g.tensors, g.tensors_equal, g.active)
        for g in effective.resident_adapters
    ] == [
        ("a", 4, 6, 12, 12, True),
        ("b", 8, 6, 12, 12, False),
    ]
    assert len({g.content_hash for g in effective.resident_adapters}) == 2
    assert both.run(WORK, 0).outputs_hash == outputs["a"] != outputs["base"]
    promise(both, "lora:a+lora:b", plan(*folders))


def test_an_adapter_s_matrices_are_parameters_but_no_linear_layers_of_the_model(both):
    plain = TransformersEngine().open(plan()).opened().effective
    effective = both.opened().effective
    assert effective.linears == plain.linears
    extra = effective.weights_bytes - plain.weights_bytes
    assert extra == 4 * sum(g.elements for g in effective.resident_adapters)


def test_a_switched_adapter_gives_what_it_gives_alone(both, outputs):
    for name in ("b", "base", "a", "b"):
        assert both.use_adapters((name,)) == (() if name == "base" else (name,))
        assert both.run(WORK, 0).outputs_hash == outputs[name]
    assert both.use_adapters(()) == ("a",)
    assert both.run(WORK, 0).outputs_hash == outputs["a"]


def test_a_batch_mixes_base_and_adapters_row_by_row(both, folders):
    """Each row has the tokens that it has when the whole batch goes through its adapter."""

    def tokens(*names):
        both.use_adapters(names)
        batch = both._runner.inputs(Decode(batch=3, prompt_tokens=8, new_tokens=6), 0)
        return both._runner.decode(batch, WORK).tokens

    whole = {name: tokens(name) for name in ("a", "b", "base")}
    assert len({tuple(rows.flatten().tolist()) for rows in whole.values()}) == 3
    for before in ("base", "a"):  # the base alone switches peft's layers off
        both.use_adapters((before,))
        mixed = tokens("b", "base", "a")
        for i, name in enumerate(("b", "base", "a")):
            assert torch.equal(mixed[i], whole[name][i])
    both.use_adapters(())


@pytest.mark.parametrize("names", [("b",), ("base",), ("b", "base"), ("b", "a", "b")], ids="+".join)
def test_what_a_view_of_it_promises_holds_while_it_is_switched_so_and_not_after(
    both, folders, names
):
    """The comparison of an adapter with its own base needs this of both, in turn and warmed up."""
    promised = switched(parse("lora:a+lora:b").promises(plan(*folders)), names)
    both.use_adapters(names)
    both.run(WORK, 0)
    require_in_effect(both.describe().effective, promised, "warm")
    both.use_adapters(())
    with pytest.raises(NotInEffect, match="in force are a, asked for"):
        require_in_effect(both.describe().effective, promised, "warm")


def test_layers_that_are_off_in_a_mixed_batch_are_an_error(both, monkeypatch):
    """Negative control: peft leaves them off after the base alone, whatever a row says."""
    both.use_adapters(("base",))
    with monkeypatch.context() as without:
        without.setattr(
            type(both._loaded.adapters.peft.base_model), "enable_adapter_layers", lambda _: None
        )
        both.use_adapters(("a", "base"))
        with pytest.raises(
            NotInEffect,
            match=r"rows through a, __base__ were asked for, the layers were called with \[\(\)\]",
        ):
            both.run(WORK, 0)
    both.use_adapters(())


def test_a_mixed_batch_whose_layers_are_not_called_so_is_an_error(both, monkeypatch):
    """Negative control: peft's hooks do nothing, and the rows all go through one adapter."""
    both.use_adapters(("a", "base"))
    monkeypatch.setattr(module, "_watched", _blind)
    with pytest.raises(NotInEffect, match="rows through a, __base__ were asked for"):
        both.run(WORK, 0)
    both.use_adapters(())


def _blind(_model, _calls):
    from contextlib import nullcontext

    return nullcontext()


def test_the_cost_of_a_step_counts_the_adapters_that_it_reads(both, folders):
    plain = TransformersEngine().open(plan()).run(WORK, 0).step
    sizes = {g.name: g.elements for g in both.opened().effective.resident_adapters}
    for names, elements in (((), sizes["a"]), (("b",), sizes["b"]), (("base",), 0)):
        both.use_adapters(names)
        step = both.run(WORK, 0).step
        assert step.weight_bytes_read - plain.weight_bytes_read == 4 * elements
        assert step.flops_per_token - plain.flops_per_token == 2 * elements
    both.use_adapters(())


def test_a_merged_adapter_agrees_with_the_unmerged_one(both, folders, outputs, tmp_path):
    """And leaves nothing behind but changed weights."""
    merged = TransformersEngine().open(plan(folders[0], merge_adapters=True))
    (group,) = merged.opened().effective.resident_adapters
    assert (
        group.merged,
        group.layers,
        group.tensors_equal,
        merged.opened().effective.adapters,
    ) == (True, 6, 12, ("a",))
    assert (
        merged.opened().effective.weights_bytes
        == TransformersEngine().open(plan()).opened().effective.weights_bytes
    )
    promise(merged, "lora:a:merged", plan(folders[0], merge_adapters=True))
    both.make_reference(PromptSet.synthetic(3), 6, 4, str(tmp_path / "ref"))
    rows = merged.compare_reference(str(tmp_path / "ref"), 4)
    assert max(row.max_abs_logit_error for row in rows) < 1e-4
    assert all(row.first_divergence is None for row in rows)
    plain = TransformersEngine().open(plan()).compare_reference(str(tmp_path / "ref"), 4)
    assert max(row.max_abs_logit_error for row in plain) > 1e-2, (
        "the control: without the adapter the logits are others"
    )


def test_merging_something_else_than_the_product_is_an_error(folders, monkeypatch):
    """Negative control: a merge that adds half of it."""
    from peft.tuners.lora.layer import Linear

    def half(self, **_kwargs):
        self.get_base_layer().weight.data += 0.5 * self.get_delta_weight("a")

    monkeypatch.setattr(Linear, "merge", half)
    with pytest.raises(NotInEffect, match="something else than its product"):
        TransformersEngine().open(plan(folders[0], merge_adapters=True))


def test_adapter_b_applied_where_a_was_asked_breaks_the_promise(folders, monkeypatch):
    """Negative control of the issue: the modules hold b's tensors under a's name."""
    asked = plan(folders[0])
    read = module.AdapterFile.read
    other = {str(folders[0]): folders[0].parent / "b4"}
    adapter(other[str(folders[0])], model(), seed=9, rank=4, base=BASE)
    from_pretrained = module.PeftModel.from_pretrained
    monkeypatch.setattr(
        module.PeftModel,
        "from_pretrained",
        lambda base, folder, **more: from_pretrained(base, other[str(folder)], **more),
    )
    session = TransformersEngine().open(asked)
    assert (
        read(folders[0]).content_hash
        == session.opened().effective.resident_adapters[0].content_hash
    )
    with pytest.raises(NotInEffect, match=r"0 of 12 tensors of adapter 'a'.*another adapter"):
        promise(session, "lora:a", asked)


def test_one_tensor_that_was_changed_breaks_the_promise(folders):
    asked = plan(folders[0])
    session = TransformersEngine().open(asked)
    layer = session._loaded.model.model.layers[1].mlp.down_proj
    layer.lora_B["a"].weight.data[0, 0] += 1
    with pytest.raises(NotInEffect, match="11 of 12 tensors"):
        promise(session, "lora:a", asked)


def test_an_adapter_that_is_off_in_one_layer_breaks_the_promise(folders):
    asked = plan(folders[0])
    session = TransformersEngine().open(asked)
    session._loaded.model.model.layers[0].self_attn.q_proj.enable_adapters(enabled=False)
    assert session.describe().effective.adapters == ("a in 5 of 6 layers",)
    with pytest.raises(NotInEffect, match="in force are a in 5 of 6 layers"):
        promise(session, "lora:a", asked)


def test_layers_that_a_pass_goes_past_break_the_promise(folders):
    """Fused code multiplies with a layer's weight and does not call the layer."""
    asked = plan(folders[0])
    session = TransformersEngine().open(asked)
    layer = session._loaded.model.model.layers[1].mlp.down_proj
    promise(session, "lora:a", asked)
    mlp = session._loaded.model.model.layers[1].mlp
    mlp.forward = lambda x: torch.nn.functional.linear(
        mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), layer.weight
    )
    with pytest.raises(NotInEffect, match="went past 1 of its 6 layers"):
        promise(session, "lora:a", asked)


def test_modules_that_do_not_follow_a_switch_are_an_error(both, monkeypatch):
    monkeypatch.setattr(module.PeftModel, "set_adapter", lambda *_args, **_kwargs: None)
    with pytest.raises(NotInEffect, match="adapter 'b' was asked for, in force are a"):
        both.use_adapters(("b",))


def test_what_cannot_be_switched_says_why(both, folders):
    with pytest.raises(UsageError, match=r"adapter 'c' is not loaded.*There are: a, b, base"):
        both.use_adapters(("c",))
    with pytest.raises(UsageError, match="merged into the weights"):
        TransformersEngine().open(plan(folders[0], merge_adapters=True)).use_adapters(("base",))
    with pytest.raises(UsageError, match="none is loaded"):
        TransformersEngine().open(plan()).use_adapters(("a",))


def test_in_half_precision_the_adapter_is_too(folders):
    asked = structs.replace(plan(folders[0]), weights_dtype="bfloat16", strategy="bf16")
    session = TransformersEngine().open(asked)
    require_in_effect(session.opened().effective, parse("bf16+lora:a").promises(asked), "loaded")
    assert set(session.opened().effective.parameter_bytes_by_dtype) == {"bfloat16"}


def test_the_content_hash_is_that_of_model_and_adapters(both, folders):
    alone = TransformersEngine().open(plan(folders[0])).opened()
    plain = TransformersEngine().open(plan()).opened()
    assert len({alone.content_hash, both.opened().content_hash, plain.content_hash}) == 3
    assert alone.base_hash == both.opened().base_hash == plain.content_hash
    assert plain.base_hash == ""


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (
            {"base_model_name_or_path": "org/other-7b"},
            ["made for org/other-7b", f"does not fit model '{BASE}'", "another base"],
        ),
        ({"r": 16}, ["its configuration says rank 16", "has rank 4"]),
        ({"peft_type": "IA3"}, ["is of type 'IA3', 'LORA' is needed"]),
    ],
)
def test_an_adapter_whose_configuration_is_of_something_else_is_refused(
    folders, tmp_path, change, fragments
):
    folder = tmp_path / "a"
    shutil.copytree(folders[0], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(LoadError) as caught:
        TransformersEngine().open(plan(folder))
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_another_name_for_the_base_can_be_declared_the_same(folders, tmp_path):
    folder = tmp_path / "a"
    adapter(folder, model(), seed=1, base="org/other-name")
    session = TransformersEngine().open(plan(folder, options=(("adapter_base", "any"),)))
    assert session.opened().effective.adapters == ("a",)


def test_an_adapter_of_another_shape_is_refused_with_both_named(folders, tmp_path):
    from support.generating import tiny_llama
    from transformers import LlamaConfig, LlamaForCausalLM

    narrow = adapter(tmp_path / "narrow", tiny_llama(), seed=1, base=BASE)
    with pytest.raises(
        LoadError,
        match=r"'narrow'.*does not fit model 'arch:tiny-llama'.*"
        r"has \d+ inputs, the adapter's lora_A has",
    ):
        TransformersEngine().open(plan(narrow))
    three = LlamaForCausalLM(LlamaConfig(**model().config.to_dict() | {"num_hidden_layers": 3}))
    deep = adapter(tmp_path / "deep", three, seed=1, base=BASE)
    with pytest.raises(
        LoadError,
        match=r"'deep'.*it changes model\.layers\.2\..*, which LlamaForCausalLM does not have",
    ):
        TransformersEngine().open(plan(deep))


def test_an_adapter_that_lacks_a_tensor_breaks_the_promise(folders, tmp_path):
    """peft fills it with what it likes and only warns."""
    folder = tmp_path / "a"
    shutil.copytree(folders[0], folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    asked = plan(folder)
    with pytest.warns(UserWarning, match="missing"):
        session = TransformersEngine().open(asked)
    with pytest.raises(NotInEffect, match="11 of 12 tensors"):
        promise(session, "lora:a", asked)


@pytest.mark.parametrize("part", ["nf4", "int8", "int8wo"])
def test_looking_at_an_adapter_on_quantized_weights_changes_nothing(tmp_path, part):
    """bitsandbytes unpacks its 4-bit weights for a state_dict, and does not pack them again."""
    name = "arch:small-llama"
    base = arch.build(
        "small-llama", dtype=torch.float32, device=torch.device("cpu"), seed=0, attention=None
    )
    folder = adapter(tmp_path / "a", base, seed=1, base=name)
    asked = LoadPlan(
        model=model_ref(name), weights_dtype="float32", quantization=part, adapters=(str(folder),)
    )
    session = TransformersEngine().open(asked)
    ids = torch.arange(5, 25)[None]

    def logits():
        with torch.no_grad():
            return session._loaded.model.forward(input_ids=ids, use_cache=False).logits

    before = logits()
    (group,) = session.describe().effective.resident_adapters
    assert group.tensors_equal == group.tensors
    assert torch.equal(logits(), before)
    session.use_adapters(("base",))
    plain = TransformersEngine().open(
        LoadPlan(model=model_ref(name), weights_dtype="float32", quantization=part)
    )
    with torch.no_grad():
        expected = plain._loaded.model.forward(input_ids=ids, use_cache=False).logits
    assert torch.equal(logits(), expected)
    assert not torch.equal(before, expected)
