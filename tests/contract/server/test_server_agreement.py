"""Agreement by what a server says of token ids.

The reference file is made here, and the server answers from logits.
"""

from __future__ import annotations

import asyncio
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.rules import parse_rule
from pytest_llmperf.core.verdicts.estimate import NotMeasurable
from pytest_llmperf.engines.outputs.reference_file import FORMAT
from pytest_llmperf.engines.server.agreement import Reference, compare
from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.testing import scripted_plan
from pytest_llmperf.wire.commands import MakeReference, Open
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workloads import PromptSet

ROWS = ((3, 1), (2, 4, 1))
VOCABULARY, POSITIONS = 9, 4


def logits_after(ids) -> np.ndarray:
    """What a model that depends on all ids before says next."""
    return (
        np.random.default_rng(hash(tuple(ids)) % 2**32).normal(0, 2, VOCABULARY).astype(np.float32)
    )


def greedy(row, after) -> list[int]:
    ids = list(row)
    for _ in range(POSITIONS):
        ids.append(int(after(ids).argmax()))
    return ids[len(row) :]


@pytest.fixture
def reference(tmp_path):
    """The file of that model, as the transformers engine writes it."""
    continuations = [greedy(row, logits_after) for row in ROWS]
    forced = [
        [logits_after([*row, *c[:i]]) for i in range(POSITIONS)]
        for row, c in zip(ROWS, continuations, strict=True)
    ]
    tensors = {
        "prompt_ids": np.array([[0, *ROWS[0]], ROWS[1]]),
        "lengths": np.array([len(row) for row in ROWS]),
        "continuation": np.array(continuations),
        "logits": np.array(forced),
        "counts": np.array([POSITIONS] * len(ROWS)),
    }
    path = tmp_path / "a.ref"
    save_file(
        tensors,
        path,
        {
            "format": FORMAT,
            "logits_dtype": "float32",
            "prompts": json.dumps(["one", "two"]),
            "parts": json.dumps(["", ""]),
            "ends": "[]",
            "rounding": "null",
        },
    )
    return Reference.open(str(path))


def server(after, **lacks):
    """Answers as vLLM does, from the logits of `after`; `lacks` are fields that it leaves out."""

    def said(logits: np.ndarray, token: int, k: int) -> dict:
        logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum())
        kept = {*np.argsort(-logits)[:k].tolist(), token}
        return {
            str(t): {"logprob": float(logprobs[t]), "rank": int((logits > logits[t]).sum()) + 1}
            for t in kept
        }

    async def ask(fields: dict) -> dict:
        ids = fields["prompt"]
        if k := fields.get("prompt_logprobs"):
            choice = {
                "prompt_logprobs": [
                    None,
                    *(said(after(ids[:i]), ids[i], k) for i in range(1, len(ids))),
                ]
            }
        else:
            tokens = greedy(ids, after)[: fields["max_tokens"]]
            said_of = [
                said(after([*ids, *tokens[:i]]), token, 1)[str(token)]["logprob"]
                for i, token in enumerate(tokens)
            ]
            choice = {"token_ids": tokens, "logprobs": {"token_logprobs": said_of}}
        return {name: value for name, value in choice.items() if not lacks.get(name)}

    return ask


def agreement(reference, after, rule="exact", **lacks) -> Agreement:
    rows = asyncio.run(compare(server(after, **lacks), reference, None, batch=2))
    return Agreement(rows, rule=parse_rule(rule))


def test_a_server_of_the_same_logits_agrees_to_the_letter(reference):
    """Every number that log-probabilities give; the others say why they are none."""
    found = agreement(
        reference, logits_after, "exact+containment(k=1, horizon=4)+perplexity(1.001)"
    )
    assert not found.reasons
    assert found.top1.value == found.top5.value == found.prefix_match.value == 1
    assert found.logprob_mae.value < 1e-6
    assert math.isclose(found.perplexity_ratio.value, 1, rel_tol=1e-6)
    assert all(
        isinstance(q, NotMeasurable) for q in (found.kl, found.sqnr_db, found.logit_correlation)
    )
    assert "not the logits of all" in found.kl.reason
    assert found.summary()["kl"]["value"] is None


@pytest.mark.parametrize(
    "rule", ["sqnr(40)", "correlation(0.9)", "logits(1)", "exact+noise_floor(2)"]
)
def test_a_rule_that_needs_all_logits_never_holds(reference, rule):
    """Not even for equal ones: nothing was compared."""
    assert "not measurable" in agreement(reference, logits_after, rule).reasons[0]


def test_another_model_is_found_out(reference):
    """Ranks, log-probabilities and the place where the texts part.

    They are those counted from its logits by hand.
    """

    def other(ids):
        return logits_after(ids) + np.where(np.arange(VOCABULARY) == 7, 50.0, 0.0).astype(
            np.float32
        )

    found = agreement(reference, other, "containment(k=1, horizon=4)+perplexity(1.5)")
    assert len(found.reasons) == 2
    row = found.prompts[0]
    first = next((i for i, token in enumerate(reference.continuations[0]) if token != 7), None)
    assert row.first_divergence == first
    logits = reference.logits(0)[first]
    assert row.candidate_rank_in_reference == (logits > logits[7]).sum()
    assert row.reference_rank_in_candidate == 1
    assert sum(row.top1) == sum(token == 7 for token in reference.continuations[0])


@pytest.mark.parametrize(
    ("lacks", "said"),
    [("prompt_logprobs", "log-probabilities of a prompt"), ("token_ids", "does not return")],
)
def test_a_server_that_does_not_say_it_is_refused(reference, lacks, said):
    """With what it lacks."""
    with pytest.raises(UsageError, match=said):
        agreement(reference, logits_after, **{lacks: True})


def test_a_file_that_is_no_reference_is_named(tmp_path):
    """As every engine does."""
    with pytest.raises(WorkerError, match=r"a\.ref cannot be read"):
        Reference.open(str(tmp_path / "a.ref"))


def test_a_session_asks_by_its_own_protocol_and_repeats_what_the_server_says_against_it(
    start, reference
):
    """The stub knows streams alone: it answers an agreement's question with one.

    A server of texts is not asked.
    """
    with pytest.raises(UsageError, match="takes texts"):
        start().compare_reference(str(reference.path), 2)
    refusing = start("--fault http-503 --first 2", prompt_ids=True)
    with pytest.raises(
        UsageError, match=r"refuses what agreement needs \(HTTP 503\): come back later"
    ):
        refusing.compare_reference(str(reference.path), 2)
    host = Host(find_engine=lambda _plan: SimpleNamespace(open=lambda _plan: start()))
    host.handle(Open(plan=scripted_plan()))
    prompts = PromptSet.bundled("short-chat")
    with pytest.raises(UsageError, match="agreement needs logits"):
        host.handle(MakeReference(prompts=prompts, new_tokens=2, batch=2, path="x"))


def test_decoding_that_is_not_what_the_prompt_says_is_found_out(reference):
    """Negative control: prefill is right, and from the second token on it decodes another text."""

    async def ask(fields: dict) -> dict:
        choice = await server(logits_after)(fields)
        if "token_ids" in choice:
            first, *others = choice["token_ids"]
            choice["token_ids"] = [first, *((token + 1) % VOCABULARY for token in others)]
        return choice

    rows = asyncio.run(compare(ask, reference, None, batch=2))
    found = Agreement(rows, rule=parse_rule("perplexity(1.01)"))
    assert found.top1.value == 1, "the prompt alone shows nothing"
    assert "free-running tokens: 0.25 of them agree" in found.reasons[0]
    assert "a server takes no tokens from outside" in found.report()


def test_the_log_probabilities_of_decoding_are_scored_where_a_server_gives_them(reference):
    """Those of the prompt stand in where it gives none."""

    async def ask(fields: dict) -> dict:
        choice = await server(logits_after)(fields)
        if "logprobs" in choice:
            choice["logprobs"]["token_logprobs"] = [-9.0] * POSITIONS
        return choice

    rows = asyncio.run(compare(ask, reference, None, batch=2))
    assert rows[0].candidate_logprob == (-9.0,) * POSITIONS
    silent = asyncio.run(compare(server(logits_after, logprobs=True), reference, None, batch=2))
    assert silent[0].candidate_logprob == pytest.approx(silent[0].reference_logprob)
