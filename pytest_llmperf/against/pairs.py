"""Pairs of fresh processes, one of each version, until rule B has decided every track."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import zip_longest
from statistics import pvariance

from pytest_llmperf.against.base import Base
from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.spending import (
    BLOCK_SHARE,
    PairCost,
    Spending,
    next_blocks,
    too_noisy,
)
from pytest_llmperf.against.tracks import Track
from pytest_llmperf.core.agreement.answers import SharedAnswers, shared_answers
from pytest_llmperf.core.foreign_load import OthersWork, hits_alike
from pytest_llmperf.core.verdicts.loads import Load
from pytest_llmperf.errors import InvalidRun, LlmperfError
from pytest_llmperf.session.judges import Measurement, MeasuringSession
from pytest_llmperf.settings.server_target import serves
from pytest_llmperf.wire.commands import MeasureBlock
from pytest_llmperf.wire.results import BlockMeasured

REPETITIONS_PER_PAIR = 10_000
"""Prompts are numbered by their repetition; both blocks of a pair have the same, no two pairs do.
"""

MAX_INVALID = 5

_NOTHING = SharedAnswers()

FINER = 0.1
"""Blocks of a planned length stop for their precision only at a tenth of the run's."""


class Pairs:
    """Measures one measurement of a test in pairs: a block at the base, and a block here."""

    def __init__(
        self,
        base: Base,
        session: MeasuringSession,
        measurement: Measurement,
        draw: random.Random,
    ) -> None:
        self._base = base
        self._session = session
        self._models = measurement.models
        self._workload = measurement.workload
        self._draw = draw
        self._spending = Spending(session.settings.against_budget_s)
        self._loads: list[Load] = []
        self._n_measured = 0
        self.answers = [SharedAnswers() for _ in measurement.models]

    @property
    def fit_together(self) -> bool:
        """Whether both versions fit on the device at once.

        Servers on a GPU take most of its memory, whatever their model needs.
        """
        plans = [model.plan for model in self._models]
        if any(plan.device_kind != "cpu" and serves(plan.engine) for plan in plans):
            return False
        return self._session.pool.fits_together(*plans, *plans)

    def unload(self) -> bool:
        """Have this side's models loaded anew. Returns False where the test itself holds one."""
        return self._session.renew(self._models)

    def measure(self, tracks: Sequence[Track]) -> str:
        """Measure until all is decided; what looks worse is looked at again.

        Returns why it ended early. Raises InvalidRun for too many pairs that are not valid.
        """
        try:
            ended = self._until_decided(tracks)
            suspected = [track for track in tracks if track.suspected]
            for track in suspected:
                track.suspect()
            return self._until_decided(suspected) or ended
        except BaseFailed as failure:
            close_tracks([track for track in tracks if track.open], str(failure))
            return ""

    def _until_decided(self, tracks: Sequence[Track]) -> str:
        """Add pairs of fresh processes to the open tracks.

        Returns why it ended early, if it did.
        """
        self._spending.begin_look()
        n_valid, n_invalid = 0, 0
        while open_tracks := [track for track in tracks if track.open]:
            ended = self._spending.ended() or self._given_up(open_tracks)
            if ended:
                return ended
            self._session.progress("side by side", f"pair {n_valid + 1}", None)
            try:
                base, head = self._pair(open_tracks)
                require_alike(base.others, head.others)
            except InvalidRun as error:
                n_invalid += 1
                _require_mostly_valid(n_valid, n_invalid, error)
                continue
            n_valid += 1
            self._spending.add(_cost(base, head))
            self._loads += _loads(base, head)
            _add_pair(open_tracks, base, head)
            self._add_answers(base, head)
        return ""

    def _given_up(self, tracks: Sequence[Track]) -> str:
        """Say why further pairs could not decide any of these tracks; "" where they may."""
        n_at_end = self._spending.n_at_end if self._spending.pairs else math.inf
        reasons = [too_noisy(track.latest, n_at_end) for track in tracks]
        return reasons[0] if reasons and all(reasons) else ""

    def _add_answers(self, base: BlockMeasured, head: BlockMeasured) -> None:
        """Compare what both servers answered. Raises BaseFailed where they have nothing in common.

        Speeds of two models are no comparison of two servers.
        """
        shared = [
            shared_answers(ours, theirs)
            for ours, theirs in zip(head.answers, base.answers, strict=False)
        ]
        self.answers = [
            before + now for before, now in zip_longest(self.answers, shared, fillvalue=_NOTHING)
        ]
        for answers in self.answers:
            if answers.of_another_model:
                raise BaseFailed(answers.of_another_model)

    def _pair(self, tracks: Sequence[Track]) -> tuple[BlockMeasured, BlockMeasured]:
        """Measure a fresh process of each version in random order; return the base's and ours."""
        command = self._command(tracks)
        self._n_measured += 1
        if self._draw.random() < 0.5:  # noqa: PLR2004 - a fair coin
            base = self._base_block(command)
            return base, self._own_block(command)
        head = self._own_block(command)
        return self._base_block(command), head

    def _command(self, tracks: Sequence[Track]) -> MeasureBlock:
        goal = self._session.goal
        names = tuple(dict.fromkeys(track.metric.name for track in tracks))
        blocks = next_blocks(
            self._loads,
            _log_ratios(tracks),
            goal.budget_s * BLOCK_SHARE,
            needs_all=any(map(_is_high_percentile, names)),
        )
        return MeasureBlock(
            metrics=names,
            precision=goal.precision * (FINER if blocks.repetitions else 1),
            budget_s=blocks.budget_s,
            first_repetition=(self._n_measured + 1) * REPETITIONS_PER_PAIR,
            fresh=True,
            repetitions=blocks.repetitions,
        )

    def _base_block(self, command: MeasureBlock) -> BlockMeasured:
        try:
            return self._base.block(command)
        except InvalidRun:
            raise
        except LlmperfError as error:
            raise BaseFailed(
                f"the base failed while it was measured: {type(error).__name__}: {error}"
            ) from error

    def _own_block(self, command: MeasureBlock) -> BlockMeasured:
        block = measure_block(self._session, self._models, self._workload, command)
        if not self.fit_together:
            self.unload()
        return block


def require_alike(base: OthersWork, head: OthersWork) -> None:
    """Raise InvalidRun where other programs hit the two blocks of a pair, and not alike."""
    if not (base.beside or head.beside) or hits_alike((base.share, head.share)):
        return
    shares = [f"{share:.0%}" if share is not None else "?" for share in (base.share, head.share)]
    raise InvalidRun(
        f"other programs used {shares[0]} of the cores beside the base, "
        f"{shares[1]} beside the new version"
    )


class BaseFailed(Exception):
    """The base side failed in the middle of a comparison: open tracks stay without a verdict."""


def close_tracks(tracks: Sequence[Track], reason: str) -> None:
    """Say why these tracks are not compared, where nothing was said before."""
    for track in tracks:
        track.reason = track.reason or reason


def _require_mostly_valid(n_valid: int, n_invalid: int, error: InvalidRun) -> None:
    if n_invalid > max(MAX_INVALID, n_valid):
        raise InvalidRun(
            f"{n_invalid} of {n_invalid + n_valid} pairs were not valid; the last: {error}"
        ) from error


def _add_pair(tracks: Sequence[Track], base: BlockMeasured, head: BlockMeasured) -> None:
    for track in tracks:
        name = track.metric.name
        reason = base.reasons.get(name) or head.reasons.get(name, "")
        values = (base.values[track.side][name], head.values[track.side][name])
        track.add(*values, reason, loads=_loads(base, head))


def _loads(base: BlockMeasured, head: BlockMeasured) -> list[Load]:
    """Return what both processes cost; what a side of an earlier version does not say is unknown.

    Then it counts as no fresh one.
    """
    return [block.load or _unknown_load(block) for block in (base, head)]


def _unknown_load(block: BlockMeasured) -> Load:
    return Load(fresh=False, ready_s=0.0, sampled_s=block.spent_s, repetitions=1, within=0.0)


def _cost(base: BlockMeasured, head: BlockMeasured) -> PairCost:
    return PairCost(
        sampled_s=base.spent_s + head.spent_s,
        total_s=math.fsum(load.ready_s + load.sampled_s for load in _loads(base, head)),
    )


def _log_ratios(tracks: Sequence[Track]) -> list[float]:
    """Return the pairs of the open track whose pairs differ the most; [] where none is noisy."""
    ratios = [list(track.state.log_ratios) for track in tracks if not track.counted]
    return max((of_track for of_track in ratios if len(of_track) > 1), key=pvariance, default=[])


def _is_high_percentile(metric: str) -> bool:
    return metric.rpartition(".")[2] in ("p90", "p95", "p99")
