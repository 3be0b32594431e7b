"""A server as a record describes it: what it says of itself, and the memory that can be seen."""

from __future__ import annotations

import hashlib

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import MemoryGauges
from pytest_llmperf.engines.server.proof.questions import Proof
from pytest_llmperf.engines.server.running import Server
from pytest_llmperf.engines.server.source import ModelSource, chat_template
from pytest_llmperf.engines.server.starting import phases
from pytest_llmperf.secrets import masked

_UNSEEN = "a server shows its weights to nobody"


def effective(plan: LoadPlan, server: Server, source: ModelSource, proof: Proof) -> Effective:
    """Return what is in effect, as far as the server says or shows it."""
    dtype = server.facts.get("dtype", "") or proof.dtype
    origin = masked(server.base if server.child is None else " ".join(server.child.command))
    statement = (
        f"the server says that it runs in {dtype}"
        if dtype
        else "the server does not say in which dtype it runs"
    )
    return Effective(
        engine=plan.engine,
        model_class=server.name,
        tensors=(),
        linears=(),
        compute_dtype=dtype,
        autocast_dtype=None,
        checkpoint_dtype=None,
        attention="",
        cache="",
        compile_mode=None,
        compiled_graphs=0,
        decode_loop=server.options.protocol,
        padding_side="",
        device=plan.device,
        reported_dtype=dtype,
        notes=(origin, statement, *_template_note(server, source), *proof.notes),
        server_settings=proof.settings,
    )


def _template_note(server: Server, source: ModelSource) -> list[str]:
    """Name the chat template that lies here; the server applies its own to messages."""
    template = chat_template(source.tokenizer_folder)
    if server.options.protocol != "openai-chat" or not template:
        return []
    digest = hashlib.sha256(template.encode()).hexdigest()[:16]
    return [f"messages go into the server's chat template; the one here is sha256 {digest}"]


def memory(plan: LoadPlan, server: Server, proof: Proof) -> MemoryGauges:
    """Return the resident memory of our server on a CPU, and the tokens that its cache holds."""
    reasons = dict.fromkeys(("weights", "peak", "reserved", "device", "kv_cache"), _UNSEEN)
    tokens = _kv_tokens(server, proof)
    if tokens is None:
        reasons["kv_tokens"] = "the server does not say it"
    resident = None
    if server.child is None:
        reasons["process"] = f"{_UNSEEN}: it runs elsewhere"
    elif plan.device != "cpu":
        reasons["process"] = f"{_UNSEEN}: its share of the GPU is not told apart"
    else:
        resident = server.child.resident_bytes()
    return MemoryGauges(weights=0, process=resident, kv_tokens=tokens, reasons=reasons)


def _kv_tokens(server: Server, proof: Proof) -> int | None:
    """Return the tokens that the KV cache holds: as the log says, else the server itself."""
    child = server.child
    logged = phases.kv_tokens(child.beginning()) if child is not None else None
    return logged or proof.kv_tokens
