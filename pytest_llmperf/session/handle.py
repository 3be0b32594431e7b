"""`llmperf`, as a test sees it.

It measures and records a project's own callable, or its own loaded model, like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_llmperf import engines
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.misspelt import Suggests, suggests_keywords
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session.declare import Declaration
from pytest_llmperf.session.model import Model
from pytest_llmperf.worker.host import Host
from pytest_llmperf.workers.in_process import InProcess
from pytest_llmperf.workloads import Decode

if TYPE_CHECKING:
    from pytest_llmperf.session.session import LlmperfSession


@suggests_keywords
class Handle(Suggests):
    """The session in a test's hands. What it measures runs in the test's own process."""

    def __init__(self, session: LlmperfSession, declared: Declaration) -> None:
        self._session = session
        self._declared = declared
        self._adopted = 0

    def __repr__(self) -> str:
        return "<llmperf: measure(callable, tokens=…) or wrap(model, tokenizer)>"

    def measure(self, function: Callable[[], Any], *, tokens: int, name: str = "") -> RunResult:
        """Measure a callable that produces `tokens` output tokens a call.

        It is warmed up, sampled, recorded and judged like a model. Only what can be seen from
        outside is measured: latency and output throughput; token times, memory and the rest are
        NotMeasurable.

        Raises:
            UsageError: `function` cannot be called, or `tokens` is not at least 1. What `function`
                raises goes through.
        """
        if not callable(function):
            raise UsageError(
                f"llmperf.measure({function!r}): "
                "something that can be called without arguments is needed."
            )
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise UsageError(
                f"llmperf.measure(tokens={tokens!r}): "
                "the number of output tokens of one call is needed, at least 1.",
            )
        # Only for tests that use it.
        from pytest_llmperf.engines.inprocess import CallableEngine  # noqa: PLC0415

        engine = CallableEngine(function, tokens)
        model = self._adopt(engine, name or getattr(function, "__qualname__", "callable"))
        return model.run(Decode(batch=1, prompt_tokens=1, new_tokens=max(2, tokens)))

    def wrap(self, model: Any, tokenizer: Any = None, *, name: str = "") -> Model:
        """Return a transformers model that the test has loaded, as an `llm`.

        After the test it is put back as it was.
        """
        adopted = self._adopt(engines.wrapped(model, tokenizer), name or type(model).__name__)
        self._session.own.watch(model, adopted.plan.model.name, adopted.effective.weights_bytes)
        return adopted

    def _adopt(self, engine: Engine, name: str) -> Model:
        self._adopted += 1
        ref = ModelRef(name=name, kind="factory", location=f"in-process:{name}")
        device = getattr(engine, "device", "cpu")
        plan = LoadPlan(
            model=ref,
            engine="inprocess",
            device=device,
            strategy="as-is",
            options=(("adopted", self._adopted),),
        )
        self._session.pool.adopt(plan, InProcess(Host(find_engine=lambda _plan: engine)))
        return Model(self._session, plan)
