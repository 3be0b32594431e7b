"""What an engine must do, as checks that its author runs.

def test_my_engine(tmp_path):
    check_engine(MyEngine(), LoadPlan(model=..., engine="mine"), directory=tmp_path)
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.base import Engine
from pytest_llmperf.testing import checks_facts, checks_outputs, checks_runs
from pytest_llmperf.testing.bench import Bench, Check

__all__ = ["CHECKS", "Check", "NonConforming", "check_engine", "scripted_plan"]


class NonConforming(AssertionError):
    """The engine breaks the protocol.

    One line for each finding: the check, what was found, what was to be expected.
    """


def check_engine(
    engine: Engine, plan: LoadPlan, *, directory: Path | None = None
) -> tuple[str, ...]:
    """Hold an engine to the protocol of `pytest_llmperf.engines.base`, with small workloads.

    Returns the checks that passed.

    Each check opens the plan anew, so a small model on a CPU takes seconds a check. `directory`
    (default: a temporary one) receives reference files.

    Raises:
        NonConforming: with every finding of every check. What the engine itself raises goes
            through.
    """
    with contextlib.ExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(engine, plan, folder)
        findings = [
            f"{check.name}: {finding}" for check in CHECKS for finding in _findings(check, bench)
        ]
    if findings:
        raise NonConforming(
            f"{type(engine).__name__} with {plan.model.name}:\n" + "\n".join(findings)
        )
    return tuple(check.name for check in CHECKS)


def scripted_plan(
    script: str = "", *, strategy: str = "fp32", ranks: int = 1, weights_dtype: str = "float32"
) -> LoadPlan:
    """Return a load plan of the scripted engine.

    `script` is what follows "scripted:" in a model name.
    """
    model = ModelRef(name=f"scripted:{script}", kind="scripted", location=script)
    return LoadPlan(
        model=model, engine="scripted", strategy=strategy, ranks=ranks, weights_dtype=weights_dtype
    )


def _findings(check: Check, bench: Bench) -> list[str]:
    with bench.open() as model:
        return list(check.find(model, bench))


CHECKS: Sequence[Check] = (
    Check(
        "exact tokens",
        "every request gets exactly the tokens asked for",
        checks_runs.exact_tokens,
    ),
    Check(
        "monotone times",
        "token times never go back, and repetitions do not overlap",
        checks_runs.monotone_times,
    ),
    Check(
        "fresh prompts",
        "each repetition has prompts of its own, the same ones each time",
        checks_runs.fresh_prompts,
    ),
    Check("repeatable", "equal plans and prompts give equal greedy tokens", checks_runs.repeatable),
    Check(
        "describes itself",
        "what is in effect is said, and is what the plan asked for",
        checks_facts.describes_itself,
    ),
    Check(
        "exact against itself",
        "the reference against itself: KL 0, every token equal",
        checks_outputs.exact_against_itself,
    ),
    Check(
        "next tokens",
        "token ids go in as they are, and the likeliest come out in order",
        checks_outputs.next_tokens,
    ),
    Check("memory", "weights are those described; nothing unknown is 0", checks_facts.sane_memory),
    Check(
        "energy",
        "a reading with its source, or the reason why there is none",
        checks_facts.sane_energy,
    ),
    Check("ceilings", "copy bandwidth and matmul rates above 0", checks_facts.sane_ceilings),
    Check("cost of a step", "what a step reads is there to be read", checks_facts.sane_cost),
    Check(
        "close frees",
        "a closed session answers nothing, and the plan opens again; closing twice does no harm",
        checks_runs.close_frees,
    ),
)
"""All requirements, in the order they are checked.

Parametrise over them to see each as a test of its own.
"""
