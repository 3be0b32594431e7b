"""What the session and the process that holds its connection to Ray say to each other.

Imports nothing heavy.
"""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.devices.inventory import Gpu
from pytest_llmperf.wire.messages import Failure


class Node(Struct, frozen=True, kw_only=True):
    """One host of the cluster as Ray lists it.

    `cpus` and `gpus` are what Ray lends of it, `devices` what its driver shows.
    """

    id: str
    address: str
    name: str
    cpus: float
    gpus: float = 0
    devices: tuple[Gpu, ...] = ()


class Bundle(Struct, frozen=True, kw_only=True):
    """What Ray reserves for one rank, all on one host."""

    cpus: int
    gpus: int = 0


class Slot(Struct, frozen=True, kw_only=True):
    """Where one bundle is: its host, what Ray lends there, and what a record says of that host.

    `node` is Ray's id of the host.
    """

    node: str
    address: str
    name: str
    pid: int
    version: str
    gpus: tuple[str, ...] = ()
    memory_bytes: int = 0
    facts: dict[str, str | int | float | bool | None] = {}

    def __str__(self) -> str:
        gpus = f", GPU {','.join(self.gpus)}" if self.gpus else ""
        return f"{self.name} ({self.address}{gpus})"


# From the session


class ListHosts(Struct, frozen=True, kw_only=True, tag=True):
    """Which hosts there are."""


class Reserve(Struct, frozen=True, kw_only=True, tag=True):
    """Reserve these bundles, all at once, within `wait_s`.

    `together` asks for as few hosts as can be, else for many.
    """

    bundles: tuple[Bundle, ...]
    together: bool
    wait_s: float


class Launch(Struct, frozen=True, kw_only=True, tag=True):
    """Start the ranks of a model in the first bundles held.

    One socket a rank came over the channel of sockets.

    `python` empty: the interpreter that Ray runs with on each host. `env` is set on top of what
    that has.
    """

    model: str
    ranks: int
    python: str
    program: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    deadline_s: float


class Exit(Struct, frozen=True, kw_only=True, tag=True):
    """How a rank ended; waits for its end at most `wait_s`."""

    model: str
    rank: int
    wait_s: float


class Stacks(Struct, frozen=True, kw_only=True, tag=True):
    """The stacks of a rank's threads, written to its log."""

    model: str
    rank: int


class ReadLog(Struct, frozen=True, kw_only=True, tag=True):
    """A rank's output from this byte on."""

    model: str
    rank: int
    start: int


class Kill(Struct, frozen=True, kw_only=True, tag=True):
    """End a rank, and all that it started."""

    model: str
    rank: int


class FileSize(Struct, frozen=True, kw_only=True, tag=True):
    """How large a file is on the host of a rank."""

    rank: int
    path: str


class ReadFile(Struct, frozen=True, kw_only=True, tag=True):
    """A part of a file of a rank's host."""

    rank: int
    path: str
    start: int


class WriteFile(Struct, frozen=True, kw_only=True, tag=True):
    """Put bytes into a file of a rank's host, and make its folder.

    No bytes make the folder alone.
    """

    rank: int
    path: str
    start: int
    data: bytes


class ReturnBundles(Struct, frozen=True, kw_only=True, tag=True):
    """Give the bundles back, with what still runs in them."""


Request = (
    ListHosts
    | Reserve
    | Launch
    | Exit
    | Stacks
    | ReadLog
    | FileSize
    | ReadFile
    | WriteFile
    | Kill
    | ReturnBundles
)


# From the driver


class HostList(Struct, frozen=True, kw_only=True, tag=True):
    """The cluster's hosts, and Ray's version."""

    nodes: tuple[Node, ...]
    ray: str


class Reserved(Struct, frozen=True, kw_only=True, tag=True):
    """Where the bundles are, in rank order."""

    slots: tuple[Slot, ...]


class Launched(Struct, frozen=True, kw_only=True, tag=True):
    """Process ids in rank order, each on its host.

    The address at which the ranks meet ("" for one rank).
    """

    pids: tuple[int, ...]
    meet: str = ""


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """Whether a rank has ended, and its exit code as subprocess reports it (None: not known)."""

    ended: bool
    code: int | None = None


class Text(Struct, frozen=True, kw_only=True, tag=True):
    """Stacks, or a part of a log."""

    text: bytes


class Size(Struct, frozen=True, kw_only=True, tag=True):
    """Bytes of a file; -1 for none."""

    size: int


class Done(Struct, frozen=True, kw_only=True, tag=True):
    """It is done, and there is nothing to say of it."""


class Refused(Struct, frozen=True, kw_only=True, tag=True):
    """It could not be done."""

    failure: Failure


Answer = HostList | Reserved | Launched | Ended | Text | Size | Done | Refused
