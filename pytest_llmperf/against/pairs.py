"""Pairs of blocks, one of each version, until rule B has decided every track."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pytest_llmperf.against.base import Base
from pytest_llmperf.against.blocks import measure_block
from pytest_llmperf.against.tracks import Track
from pytest_llmperf.core.foreign_load import OthersWork, hits_alike
from pytest_llmperf.errors import InvalidRun, LlmperfError
from pytest_llmperf.session.judges import Measurement, MeasuringSession
from pytest_llmperf.session.sampling import Goal
from pytest_llmperf.wire.commands import MeasureBlock
from pytest_llmperf.wire.results import BlockMeasured
from pytest_llmperf.workloads import Serve

BLOCK_SHARE = 0.2
"""Share of a run's sampling budget that one block may take.

A pair is many blocks, each too short to drift.
"""

REPETITIONS_PER_PAIR = 10_000
"""Prompts are numbered by their repetition; both blocks of a pair have the same, no two pairs do.
"""

MAX_INVALID = 5


class Pairs:
    """Measures one measurement of a test in pairs: a block at the base, and a block here."""

    def __init__(
        self,
        base: Base,
        session: MeasuringSession,
        measurement: Measurement,
        draw: random.Random,
    ) -> None:
        # A session that compares measures no traffic.
        assert not isinstance(measurement.workload, Serve)  # noqa: S101
        self._base = base
        self._session = session
        self._models = measurement.models
        self._workload = measurement.workload
        self._draw = draw

    @property
    def fit_together(self) -> bool:
        """Whether both versions fit on the device at once."""
        plans = [model.plan for model in self._models]
        return self._session.pool.fits_together(*plans, *plans)

    def unload(self) -> bool:
        """Have this side's models loaded anew. Returns False where the test itself holds one."""
        return self._session.renew(self._models)

    def measure(self, tracks: Sequence[Track]) -> str:
        """Measure until all is decided; what looks worse is measured again in fresh workers.

        Returns why it ended early. Raises InvalidRun for too many pairs that are not valid.
        """
        try:
            ended = self._until_decided(tracks, fresh=False)
            suspected = [track for track in tracks if track.suspected]
            if suspected and self.unload():
                for track in suspected:
                    track.suspect()
                self._until_decided(suspected, fresh=True)
        except BaseFailed as failure:
            close_tracks([track for track in tracks if track.open], str(failure))
            return ""
        return ended

    def _until_decided(self, tracks: Sequence[Track], *, fresh: bool) -> str:
        """Add pairs to the open tracks. With `fresh` the base's workers are new, too.

        Returns why it ended early, if it did.
        """
        budget_s = self._session.settings.against_budget_s
        spent_s, n_valid, n_invalid = 0.0, 0, 0
        while open_tracks := [track for track in tracks if track.open]:
            if spent_s >= budget_s:
                return (
                    f"the budget of {budget_s:g} s (--llmperf-against-budget) "
                    f"ended after {n_valid} pairs"
                )
            self._session.progress("side by side", f"pair {n_valid + 1}", None)
            number = n_valid + n_invalid
            try:
                base, head = self._pair(open_tracks, number, fresh=fresh and number == 0)
                require_alike(base.others, head.others)
            except InvalidRun as error:
                n_invalid += 1
                _require_mostly_valid(n_valid, n_invalid, error)
                continue
            n_valid += 1
            spent_s += base.spent_s + head.spent_s
            _add_pair(open_tracks, base, head)
        return ""

    def _pair(
        self, tracks: Sequence[Track], number: int, *, fresh: bool
    ) -> tuple[BlockMeasured, BlockMeasured]:
        """Measure a block of each version in random order, and return the base's and ours."""
        command = self._command(tracks, number, fresh=fresh)
        if self._draw.random() < 0.5:  # noqa: PLR2004 - a fair coin
            base = self._base_block(command)
            return base, self._own_block(command)
        head = self._own_block(command)
        return self._base_block(command), head

    def _command(self, tracks: Sequence[Track], number: int, *, fresh: bool) -> MeasureBlock:
        goal = self._session.goal
        names = dict.fromkeys(track.metric.name for track in tracks)
        return MeasureBlock(
            metrics=tuple(names),
            precision=goal.precision,
            budget_s=goal.budget_s * BLOCK_SHARE,
            first_repetition=(number + 1) * REPETITIONS_PER_PAIR,
            fresh=fresh,
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
        block = measure_block(
            [model.load for model in self._models],
            self._workload,
            command.metrics,
            Goal(precision=command.precision, budget_s=command.budget_s),
            self._session.progress,
            first_repetition=command.first_repetition,
        )
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
        track.add(base.values[track.side][name], head.values[track.side][name], reason)
