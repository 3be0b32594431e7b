"""Which damages each default agreement rule catches, on the built-in model.

    python benchmarks/agreement_damages.py measure damages.json [--only NAME]
    python benchmarks/agreement_damages.py judge damages.json

`measure` compares a model that rounds as bf16 does (`outputs.rounding`, at the speed of fp32) with
its fp32 reference, once for each damage of `damages.py`, and keeps the comparisons. Damages of the
weights are compared in one pass over the text, which gives the logits of a loop up to rounding;
those of decoding go through the loop itself. Undamaged variants are the same model in other
batches, with another attention and other threads.

`judge` applies the default rules to what was kept: limits were chosen on one half of the damages,
and the figures that count are those of the other half.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

MODEL = "smollm2-135m"
BATCH = 8
NEW_TOKENS = 8
UNDAMAGED = "undamaged"


ASKED = (0, *range(16, 22), 23)
"""Prompts of the bundled set that are asked: a chat, five in other scripts, two of code."""
BEHIND = {"": (), "mid": (25,), "long": (27,)}
"""Prompts of about 290 and 1150 tokens that are asked besides, where a damage needs one."""


def subset(prompts: Any, besides: str) -> Any:
    """Return the prompts that are asked here."""
    chosen = (*ASKED, *BEHIND[besides])
    return msgspec.structs.replace(
        prompts,
        texts=tuple(prompts.texts[i] for i in chosen),
        parts=tuple(prompts.parts[i] for i in chosen),
    )


def held_out(damages: Any) -> dict[str, bool]:
    """Return name -> whether a damage is held out: every second one of its family."""
    count: Counter[str] = Counter()
    chosen = {}
    for damage in damages:
        chosen[damage.name] = count[damage.family] % 2 == 1
        count[damage.family] += 1
    return chosen


# Measuring


@dataclass(frozen=True)
class Bench:
    """An fp32 model, and the references that it made: of short prompts, and with longer ones."""

    scorer: Any
    references: dict[str, str]

    @classmethod
    def open(cls, folder: str) -> Bench:
        """Load both, and make the reference."""
        import torch  # noqa: PLC0415
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

        from pytest_llmperf.engines.loading.builtin import converted_folder  # noqa: PLC0415
        from pytest_llmperf.engines.outputs.reference import make_reference  # noqa: PLC0415
        from pytest_llmperf.workloads import PromptSet  # noqa: PLC0415

        source = converted_folder(MODEL)
        tokenizer = AutoTokenizer.from_pretrained(source)
        full = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        full.requires_grad_(requires_grad=False)
        scorer = scorer_of(full, tokenizer, "float32")
        references = {}
        for besides in BEHIND:
            path = Path(folder) / f"reference-{besides}.safetensors"
            prompts = subset(PromptSet.bundled("agreement"), besides)
            if not path.exists():
                make_reference(scorer, prompts, NEW_TOKENS, BATCH, str(path))
            references[besides] = str(path)
        return cls(scorer, references)

    def compare(self, damage: Any, batch: int = BATCH) -> list[Any]:
        """Compare with the reference: through the loop, or in one pass over the text."""
        from pytest_llmperf.engines.outputs.candidate import compare_reference  # noqa: PLC0415
        from pytest_llmperf.engines.outputs.rounding import Rounded  # noqa: PLC0415

        scorer = self.scorer if damage.decoding else in_one_pass(self.scorer)
        path = self.references[damage.behind]
        with Rounded():
            return [shortened(row) for row in compare_reference(scorer, path, batch)]


def scorer_of(model: Any, tokenizer: Any, dtype: str) -> Any:
    """Return a scorer of a model on the CPU, with the loop of `generate`."""
    import torch  # noqa: PLC0415

    from pytest_llmperf.core.plan import LoadPlan  # noqa: PLC0415
    from pytest_llmperf.engines.models.names import model_ref  # noqa: PLC0415
    from pytest_llmperf.engines.outputs.inputs import Vocabulary  # noqa: PLC0415
    from pytest_llmperf.engines.outputs.scorer import Scorer  # noqa: PLC0415
    from pytest_llmperf.engines.transformers.generate import GenerateLoop  # noqa: PLC0415

    vocabulary = Vocabulary.of(model, tokenizer)
    plan = LoadPlan(model=model_ref(MODEL), weights_dtype=dtype, device="cpu")
    return Scorer(
        model=model,
        tokenizer=tokenizer,
        loop=GenerateLoop(model, plan, vocabulary.pad),
        vocabulary=vocabulary,
        device=torch.device("cpu"),
        autocast_dtype=None,
    )


def in_one_pass(scorer: Any) -> Any:
    """Return the scorer with its loop replaced by one pass over prompt and continuation."""
    from pytest_llmperf.engines.outputs.scorer import Scorer  # noqa: PLC0415

    class OnePass(Scorer):
        """Scores without decoding."""

        unforced = ""

        def looped_logits(self, batch: Any, continuation: Any) -> Any:
            """Return the logits of one pass."""
            vars(self)["last"] = super().forced_logits(batch, continuation)
            return vars(self)["last"][0]

        def forced_logits(self, _batch: Any, _continuation: Any) -> Any:
            """Return the same again."""
            return vars(self)["last"]

        def free(self, _batch: Any, _new_tokens: int) -> Any:
            """Decode nothing."""
            return None

    return OnePass(**vars(scorer))


def shortened(row: Any) -> Any:
    """Return the comparison without its texts."""
    return msgspec.structs.replace(row, prompt="", reference_text="", candidate_text="", worst=None)


def measure(file: Path, only: str) -> None:
    """Compare all damages that `file` does not hold yet, and write after each."""
    from damage_list import DAMAGES, Damage  # noqa: PLC0415

    rows = json.loads(file.read_text()) if file.exists() else {}
    folder = Path(tempfile.gettempdir()) / "llmperf-damages"
    folder.mkdir(exist_ok=True)
    bench = Bench.open(str(folder))
    for damage in (*undamaged(Damage), *DAMAGES):
        if damage.name in rows or only not in damage.name:
            continue
        start = time.process_time()
        batch = int(damage.family) if damage.family.isdigit() else BATCH
        with damage.apply(bench.scorer.model, bench.scorer.tokenizer):
            compared = bench.compare(damage, batch)
        rows[damage.name] = msgspec.to_builtins(compared)
        file.write_text(json.dumps(rows))
        sys.stdout.write(f"{damage.name}: {time.process_time() - start:.0f} s of CPU\n")
        sys.stdout.flush()


def undamaged(damage: Any) -> Iterator[Any]:
    """Yield 20 variants of the model that is right: its batch, attention, loop and threads."""
    yield damage(f"{UNDAMAGED}: long", "", _nothing, behind="long")
    yield damage(f"{UNDAMAGED}: its loop", "", _nothing, decoding=True)
    for batch in (1, 2, 3, 4, 5, 6, 8):
        yield damage(f"{UNDAMAGED}: batch {batch}", str(batch), _nothing)
    for batch in (1, 2, 3, 4, 5, 6, 8):
        name = f"{UNDAMAGED}: eager attention, batch {batch}"
        yield damage(name, str(batch), _with_attention("eager"))
    for threads in (2, 3, 4, 8):
        yield damage(f"{UNDAMAGED}: {threads} threads", "8", _with_threads(threads))


def _nothing(_model: Any, _tokenizer: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _with_attention(name: str) -> Any:
    @contextlib.contextmanager
    def apply(model: Any, _tokenizer: Any) -> Iterator[None]:
        before = model.config._attn_implementation  # noqa: SLF001 - transformers' own place for it
        model.set_attn_implementation(name)
        try:
            yield
        finally:
            model.set_attn_implementation(before)

    return apply


def _with_threads(n: int) -> Any:
    @contextlib.contextmanager
    def apply(_model: Any, _tokenizer: Any) -> Iterator[None]:
        import torch  # noqa: PLC0415

        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return apply


# Judging

RULES = ("fp16", "bf16", "parallel", "8-bit", "4-bit")
OF_0_2 = "containment(k=5, horizon=32)+perplexity(1.01)+sqnr(20)"
"""What bf16 was held to before."""


def verdicts(compared: Any) -> dict[str, bool]:
    """Return rule -> whether it rejects what was compared."""
    from pytest_llmperf.core.agreement.agreement import Agreement  # noqa: PLC0415
    from pytest_llmperf.core.agreement.comparison import PromptComparison  # noqa: PLC0415
    from pytest_llmperf.core.agreement.kinds import DEFAULT_RULES  # noqa: PLC0415
    from pytest_llmperf.core.agreement.rules import parse_rule  # noqa: PLC0415
    from pytest_llmperf.core.agreement.through_the_loop import (  # noqa: PLC0415
        DECODE_LIMITS_NATS,
        DecodeLimit,
    )

    rows = msgspec.convert(compared, tuple[PromptComparison, ...])
    limit = DecodeLimit(DECODE_LIMITS_NATS["bfloat16"], "bfloat16")
    rules = {name: DEFAULT_RULES[name] for name in RULES}
    rejected = {
        name: Agreement(
            rows,
            rule=parse_rule(text),
            dtype="float16" if name == "fp16" else "bfloat16",
            decode_limit=limit,
        ).reasons
        for name, text in rules.items()
    }
    before = Agreement(rows, rule=parse_rule(OF_0_2)).reasons
    return {"before": bool(before)} | {name: bool(why) for name, why in rejected.items()}


def judge(file: Path) -> str:
    """Return a Markdown table: a line a damage, then how many of each half are caught."""
    from damage_list import DAMAGES  # noqa: PLC0415

    rows = json.loads(file.read_text())
    outside = held_out(DAMAGES)
    columns = ("before", *RULES)
    lines = [
        f"| damage | family | half | {' | '.join(columns)} |",
        "| --- | --- | --- |" + " --- |" * len(columns),
    ]
    caught: dict[str, Counter[str]] = {"tuning": Counter(), "held out": Counter()}
    for damage in DAMAGES:
        if damage.name not in rows:
            continue
        half = "held out" if outside[damage.name] else "tuning"
        verdict = verdicts(rows[damage.name])
        caught[half].update(["all", *(name for name in columns if verdict[name])])
        cells = " | ".join("caught" if verdict[name] else "-" for name in columns)
        lines.append(f"| {damage.name} | {damage.family} | {half} | {cells} |")
    for half, counts in caught.items():
        shares = " | ".join(f"{counts[name]} of {counts['all']}" for name in columns)
        lines.append(f"| **caught** | | **{half}** | {shares} |")
    lines.append(_undamaged_line(rows, columns))
    return "\n".join(lines)


def _undamaged_line(rows: dict[str, Any], columns: tuple[str, ...]) -> str:
    whole = [verdicts(row) for name, row in rows.items() if name.startswith(UNDAMAGED)]
    shares = (f"{sum(row[name] for row in whole)} of {len(whole)}" for name in columns)
    return f"| **rejected** | | **undamaged** | {' | '.join(shares)} |"


def main() -> None:
    """Measure, or judge what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "judge"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="measure damages whose names hold this text")
    given = parser.parse_args()
    if given.what == "measure":
        measure(given.file, given.only)
    else:
        sys.stdout.write(judge(given.file) + "\n")


if __name__ == "__main__":
    main()
