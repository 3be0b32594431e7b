"""Published architectures as folders that a server can be started on."""

from __future__ import annotations

import pytest
from support.stubs import stub_command
from tokenizers import Tokenizer

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.server.architecture import architecture
from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.engines.server.options import read_options
from pytest_llmperf.engines.server.presets import TABLE
from pytest_llmperf.engines.server.source import model_source
from pytest_llmperf.errors import LoadError
from pytest_llmperf.workloads import Serve


def plan(model: str, engine: str = "server:vllm", **options) -> LoadPlan:
    return LoadPlan(model=model_ref(model), engine=engine, options=tuple(options.items()))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is written to the user's cache."""
    monkeypatch.setenv("LLMPERF_CACHE", str(tmp_path / "cache"))


def test_a_small_one_has_its_weights_and_a_tokenizer_of_one_word_for_each_id():
    """Made once; the same content as the folder that the offline engine reads."""
    made = architecture(plan("arch:tiny-llama"), dummy=True)
    assert not made.dummy
    assert (made.folder / "model.safetensors").is_file()
    tokenizer = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    ids = [5, 17, 511]
    assert tokenizer.encode(tokenizer.decode(ids)).ids == ids
    assert architecture(plan("arch:tiny-llama"), dummy=True) == made


def test_a_large_one_is_a_config_where_the_server_makes_weights_of_its_own():
    """And an error for a server that makes none."""
    row = TABLE["vllm"]
    source = model_source(plan("arch:falcon-7b"), row, read_options(plan("arch:falcon-7b"), row))
    assert source.dummy
    assert source.tokenizer.get_vocab_size() == 65024
    with pytest.raises(
        LoadError, match=r"'arch:falcon-7b' is too large to be written out.*'server:vllm' does"
    ):
        architecture(plan("arch:falcon-7b"), dummy=False)


def test_prompts_of_an_architecture_have_the_length_asked_for():
    """Through a scripted server."""
    session = ServerEngine().open(
        plan(
            "arch:tiny-llama",
            engine="server",
            command=stub_command(),
            name="tiny",
            stop_timeout=0.5,
        )
    )
    try:
        served = session.serve(
            Serve(concurrency=1, requests=2, prompt_tokens=9, max_new_tokens=3), 0
        )
    finally:
        session.close()
    assert [(r.n_prompt_tokens, r.n_output_tokens) for r in served.trace.requests] == [(9, 3)] * 2
