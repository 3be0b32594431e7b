"""The life of one project: record, gate, regress, accept, drift, bisect, rename, waive, expire.

Real git, a scripted model.
"""

from __future__ import annotations

import math
import random
import re

import pytest
from support.repository import TESTS, Repository
from support.stored_sessions import earlier

pytestmark = pytest.mark.own_process


GATE = "--llmperf-gate=throughput"
SPREAD = 0.005
WAIVER = """
[[waiver]]
test = "test_it.py::test_decode"
metric = "throughput"
owner = "ada"
reason = "fixed with the next kernel"
expires = {expires}
"""


class Life:
    """The project, and what happens to it."""

    def __init__(self, repo: Repository, run, opened) -> None:
        self.repo, self._run, self._opened = repo, run, opened
        self._draw = random.Random(0)

    def newest(self):
        with self._opened() as store:
            return next(iter(store.records()))

    def store_sessions(self, *latencies_s: float, hours: float) -> None:
        """Sessions with these latencies (and noise) as copies of the newest one.

        A step of `hours` into the past, or future.
        """
        model = self.newest()
        own_s = next(metric.value for metric in model.metrics if metric.name == "latency.p50")
        with self._opened() as store:
            for n, latency_s in enumerate(latencies_s, start=1):
                factor = latency_s / own_s * math.exp(SPREAD * self._draw.gauss(0, 1))
                store.add(earlier(model, n * hours, factor))

    def session(self, *options: str, code: int, **outcomes: int):
        result = self._run(*options)
        result.assert_outcomes(**outcomes)
        assert result.ret == code
        return result

    def llmperf(self, *words: str, code: int = 0) -> str:
        done = self.repo.llmperf(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def record(self) -> None:
        """One real session, and ten that went before."""
        self.session(code=0, passed=1)
        self.store_sessions(*[0.150] * 10, hours=1)

    def regress(self) -> str:
        """10 % more time: that test fails, with its size.

        The key of the series that the message names.
        """
        result = self.session(GATE, code=1, failed=1)
        result.stdout.fnmatch_lines(
            [
                (
                    "E *Regression: throughput of auto is 66.7 tok/s, "
                    "9.* % less than in 12 accepted sessions*"
                ),
                "FAILED test_it.py::test_speed*",
            ],
        )
        return self.named_key(result)

    def named_key(self, result) -> str:
        """Return the key of the series that a failure says how to accept."""
        return re.search(r"llmperf accept ([0-9a-f]{16})", " ".join(result.stdout.str().split()))[1]

    def drift(self) -> None:
        """Sixty sessions that nobody gated, 15 of each commit, none of which loses 6 %.

        They are 6 % apart in the end.
        """
        assert "no change of level" in self.llmperf("history", "--fail-on-change")
        self.store_sessions(*[0.165] * 15, *[0.166] * 15, *[0.175] * 15, *[0.176] * 15, hours=-1e-6)
        said = self.llmperf("history", "--fail-on-change", code=1)
        assert re.search(
            r"throughput 66\.\d tok/s -> 62\.\d tok/s \(\d\.\d+ % less\) "
            r"from its first to its latest 30",
            said,
        )

    def rename(self) -> None:
        """The test is missed by its old name with the likely new one.

        Its history goes on once that is said.
        """
        self.repo.commit("rename", **{"test_it.py": TESTS.replace("test_speed", "test_decode")})
        result = self.session(GATE, code=6, passed=1, warnings=1)
        result.stdout.fnmatch_lines(
            [
                (
                    "*test_it.py::test_speed is not there any more*"
                    "test_it.py::test_decode measures the same*"
                )
            ]
        )
        self.llmperf(
            "accept",
            "--rename",
            "test_it.py::test_speed",
            "test_it.py::test_decode",
            "--reason",
            "clearer",
        )
        self.session(GATE, code=0, passed=1)

    def waive(self, expires: str) -> None:
        self.repo.write(**{"llmperf-waivers.toml": WAIVER.format(expires=expires)})


@pytest.fixture
def life(pytester, monkeypatch, run, opened) -> Life:
    monkeypatch.setenv("TMPDIR", str(pytester.path.parent))
    return Life(Repository(pytester.path), run, opened)


@pytest.mark.nightly
def test_the_whole_life_of_a_project(life):
    """Each step meets what the steps before left: the store, the reviewed file, the commits."""
    repo = life.repo
    repo.commit("ten", **{"test_it.py": TESTS, "speed.py": 'TPOT = "10ms"\n'})
    life.record()
    life.session(GATE, code=0, passed=1)

    slower = repo.commit("longer prompts", **{"speed.py": 'TPOT = "11.5ms"\n'})
    key = life.regress()
    life.llmperf("accept", key, "--reason", "longer prompts by default")
    life.session(GATE, code=0, passed=1)

    life.drift()
    commits = [
        repo.commit(f"tpot {tpot}", **{"speed.py": f'TPOT = "{tpot}"\n'})
        for tpot in ("11.6ms", "12.5ms")
    ]
    named = life.llmperf("bisect", "throughput", slower, "main", "--", "-q", "test_it.py")
    assert commits[1][:12] in named

    remembered = life.session(GATE, code=1, failed=1)
    remembered.stdout.fnmatch_lines(["*sessions are held back since*"])
    life.llmperf("accept", life.named_key(remembered), "--reason", "longer answers by default")
    life.rename()

    repo.speed("15ms")
    life.session(GATE, code=1, failed=1)
    life.waive("2999-12-31")
    life.session(GATE, code=0, passed=1, warnings=1).stdout.fnmatch_lines(
        ["*waived by ada until 2999-12-31: fixed with the*"]
    )
    life.waive("2020-01-31")
    result = life.session(GATE, code=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            (
                "llmperf: the waiver of ada for throughput of test_it.py::test_decode "
                "expired on 2020-01-31*"
            )
        ]
    )
