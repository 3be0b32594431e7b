"""The options of a session: one table, of the command line and of the ini file.

Every pytest session imports this file, with llmperf tests or without: named tuples are made faster
than dataclasses, and nothing else is imported.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

DEFAULT_STORE = "sqlite:///.llmperf/history.db"
DEFAULT_WAIVERS = "llmperf-waivers.toml"


class Option(NamedTuple):
    """One option: `--llmperf-NAME` and its ini twin `llmperf_NAME`.

    A flag takes no value on the command line.

    `bare` is the value of an option that may be given without one. `path` says what of the value is
    a path: all of it, what comes after ENGINE=, or the file of an SQLite URL. A `report` is a file
    that the session writes at its end, of all tests: its side processes write none. `former` is the
    name that it had in the version before, which still works and warns (`settings/former_names`).
    """

    name: str
    help: str
    default: str = ""
    metavar: str | None = None
    flag: bool = False
    many: bool = False
    bare: str = ""
    path: Literal["", "file", "engine", "store"] = ""
    report: bool = False
    former: str = ""

    @property
    def flag_name(self) -> str:
        """Name on the command line."""
        return f"--llmperf-{self.name}"

    @property
    def ini_name(self) -> str:
        """Name in the ini file."""
        return f"llmperf_{self.name.replace('-', '_')}"

    @property
    def ini_type(self) -> Literal["bool", "linelist", "string"]:
        """Type in the ini file."""
        if self.flag:
            return "bool"
        return "linelist" if self.many else "string"

    @property
    def dest(self) -> str:
        """Attribute of pytest's option namespace."""
        return self.ini_name


OPTIONS = (
    Option(name="only", flag=True, help="run llmperf tests and deselect every other test"),
    Option(name="skip", flag=True, help="skip llmperf tests"),
    Option(
        name="disable",
        flag=True,
        help="run each workload once and measure nothing; asserts on metrics are not judged",
    ),
    Option(
        name="plan",
        flag=True,
        help="print what would run, its predicted memory and seconds, and stop",
    ),
    Option(
        name="plan-json",
        metavar="FILE",
        path="file",
        help="write what would run to this file as JSON, print it, and stop",
    ),
    Option(
        name="strict", flag=True, help="make UNDECIDED claims and skipped llmperf tests failures"
    ),
    Option(
        name="in-process",
        flag=True,
        help="load models of engines that need no process of their own (the scripted one) inside "
        "of pytest: for projects that test their own tests",
    ),
    Option(
        name="start-method",
        metavar="forkserver|spawn",
        default="forkserver",
        help="how workers are started: forked from a process that has imported the engine, where "
        "that can be (forkserver), or each as a new program (spawn)",
    ),
    Option(
        name="device",
        metavar="DEVICE",
        default="auto",
        help="auto, cuda or cpu; auto takes a GPU when the driver shows one",
    ),
    Option(
        name="gpus",
        metavar="N|0,2|all",
        default="all",
        help="the GPUs that tests may lease: a count, indices or UUIDs, or all",
    ),
    Option(
        name="cluster",
        metavar="auto|ray://HOST:PORT",
        help="load models on the hosts of this Ray cluster; auto: the one that this machine is a "
        "host of",
    ),
    Option(
        name="wait",
        metavar="SECONDS",
        default="1800",
        help="how long a test waits for devices that others hold",
    ),
    Option(
        name="strategy",
        metavar="STRATEGY",
        help="strategy, or comma-separated strategies, of tests that name none",
    ),
    Option(
        name="reference",
        metavar="STRATEGY",
        default="fp32",
        help="strategy of the `baseline` fixture",
    ),
    Option(
        name="gate",
        metavar="METRIC:LIMIT,…",
        bare="on",
        help="fail a test whose run is worse than its stored history allows: "
        "throughput:5%%,ttft.p50:10%%, or nothing for the defaults. Write it with '=', or last",
    ),
    Option(
        name="require-accepted",
        flag=True,
        former="require-baseline",
        help="fail what --llmperf-gate cannot compare with an accepted session",
    ),
    Option(
        name="any-tree",
        flag=True,
        help="hold --llmperf-gate also against sessions with uncommitted changes and of other "
        "branches",
    ),
    Option(
        name="against",
        metavar="REV|DIR|PYTHON|SERVER",
        help="measure each test side by side with the same test at this git revision, "
        "in this folder, under this interpreter, or on this server (as --llmperf-server)",
    ),
    Option(
        name="server",
        metavar="URL|image:NAME|command:…|program:PATH|args:…",
        help="the server that tests of server engines are measured on, in the place of their own",
    ),
    Option(
        name="against-limits",
        metavar="METRIC:LIMIT,…",
        help="what --llmperf-against judges, and how much worse it may be "
        "(default: as --llmperf-gate, else throughput:3%%)",
    ),
    Option(
        name="against-budget",
        metavar="SECONDS",
        default="300",
        help="sampling time of the pairs of one comparison, and as much to see a suspicion again; "
        "with the start of their processes both take twice as long at most",
    ),
    Option(
        name="against-build",
        metavar="COMMAND",
        help="shell command that is run in the files of the base commit first",
    ),
    Option(
        name="waivers",
        metavar="FILE",
        default=DEFAULT_WAIVERS,
        path="file",
        help="regressions that somebody answers for until a date",
    ),
    Option(
        name="again-budget",
        metavar="SECONDS",
        default="900",
        help="time of a session for fresh measurements of what --llmperf-gate suspects",
    ),
    Option(
        name="record",
        metavar="N",
        default="1",
        help="run N sessions one after the other, each a fresh pytest process, for --llmperf-gate "
        "to hold others against",
    ),
    Option(
        name="store",
        metavar="URL",
        default=DEFAULT_STORE,
        path="store",
        help="history store: an SQLAlchemy URL, or 'none'",
    ),
    Option(
        name="html",
        metavar="FILE",
        path="file",
        report=True,
        help="write the HTML report of this session to this file",
    ),
    Option(
        name="json",
        metavar="FILE",
        path="file",
        help="also write the records to this file, a line of JSON each; one of an earlier session "
        "is overwritten",
    ),
    Option(
        name="json-append",
        flag=True,
        help="leave the lines that --llmperf-json's file has, and write behind them",
    ),
    Option(
        name="benchmark-json",
        metavar="FILE",
        path="file",
        report=True,
        help="write the runs in pytest-benchmark's format, for 'pytest-benchmark compare'",
    ),
    Option(
        name="markdown",
        metavar="FILE",
        path="file",
        report=True,
        help="write the runs beside what was before them, as a comment's body",
    ),
    Option(
        name="gitlab",
        metavar="FILE",
        path="file",
        report=True,
        help="write what failed as GitLab's code-quality report",
    ),
    Option(
        name="openmetrics",
        metavar="FILE",
        path="file",
        report=True,
        help="write the runs as OpenMetrics text",
    ),
    Option(
        name="allow-load",
        flag=True,
        help="measure beside other programs, too: such a run is marked, only its comparisons in "
        "turn are decided for sure, and no later session is held against it",
    ),
    Option(
        name="budget",
        metavar="SECONDS",
        default="20",
        help="sampling time of one run or comparison",
    ),
    Option(
        name="precision",
        metavar="PERCENT",
        default="1",
        help="stop sampling when the 99 %% interval is within this",
    ),
    Option(
        name="processes",
        metavar="N|auto",
        default="auto",
        help="fresh processes that the repetitions of one run or comparison are spread over; auto: "
        "as many as pay, at least 3 where loading is cheap",
    ),
    Option(
        name="timeout",
        metavar="SECONDS",
        default="900",
        help="deadline of one worker command: a load, one repetition",
    ),
    Option(
        name="python",
        metavar="ENGINE=PATH",
        many=True,
        path="engine",
        help="interpreter for an engine's workers, or of a load generator; may be given again",
    ),
)

FORMER_OPTIONS = tuple(
    (
        option,
        option._replace(
            name=option.former, former="", help=f"former name of {option.flag_name}, until 0.3"
        ),
    )
    for option in OPTIONS
    if option.former
)
"""Each option that had another name, and the same option under that name."""

ALREADY_IMPORTED = (
    "ignore:Module already imported so cannot be rewritten; "
    "pytest_llmperf:pytest.PytestAssertRewriteWarning"
)
"""The value of -W for the side processes.

Each is a program of this package before it is pytest, and a project may make warnings errors.
"""
