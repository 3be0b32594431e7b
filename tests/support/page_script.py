"""A page that is followed word for word.

Its files and commands come in their order, with what each command prints by the page.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

_BLOCK = re.compile(
    r"(?:<!-- exits: (\d+) -->\n)?^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
_TITLE = re.compile(r'title="([^"]+)"')
_NUMBER = re.compile(r"[-+±<]?\d[\d.,:]*(?:\s?(?:%|[kKMGT]?i?B|tok/s|µs|ms|s|min|h|d)(?![\w/]))?")
_ANYTHING = "…"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that the page says to write, in the current folder."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, the lines that the page shows below it, and the exit code it is said to have."""

    line: str
    page_lines: tuple[str, ...] = ()
    code: int = 0


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The exit code of a command, what it printed, and how long it took."""

    command: Command
    code: int | None
    output: str
    seconds: float = field(compare=False)


Step = File | Command


def steps(page: str) -> list[Step]:
    """Everything that the page tells its reader to do, in order."""
    script_steps: list[Step] = []
    for code, language, rest, body in _BLOCK.findall(page):
        title = _TITLE.search(rest)
        if title:
            script_steps.append(File(name=title[1], text=body))
        elif language == "console":
            script_steps += _commands(body, int(code or 0))
    return script_steps


def _commands(body: str, code: int) -> list[Command]:
    commands: list[Command] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line=line[2:]))
        else:
            last = commands.pop()
            commands.append(Command(line=last.line, page_lines=(*last.page_lines, line)))
    last = commands.pop()
    return [*commands, Command(line=last.line, page_lines=last.page_lines, code=code)]


def follow(
    script_steps: list[Step], folder: Path, environ: dict[str, str], *, deadline_s: float
) -> list[Execution]:
    """Do the steps in one shell that begins in `folder`.

    It stops at the first command with another exit code.
    """
    notes = folder.parent / f"{folder.name}-steps"
    notes.mkdir()
    script = "".join(
        _in_shell(step, notes / str(n)) for n, step in zip(count(), script_steps, strict=False)
    )
    subprocess.run(
        ["bash", "-c", script],
        check=False,
        cwd=folder,
        env=environ,
        timeout=deadline_s,
        stdin=subprocess.DEVNULL,
    )
    return [
        _result(step, notes / str(n))
        for n, step in enumerate(script_steps)
        if isinstance(step, Command)
    ]


def _in_shell(step: Step, place: Path) -> str:
    if isinstance(step, File):
        place.write_text(step.text, encoding="utf-8")
        return f"cp '{place}' '{step.name}' || exit 1\n"
    begin, end = f"date +%s.%N > '{place}.begin'\n", f"date +%s.%N > '{place}.end'\n"
    judge = f"[ $code = {step.code} ] || exit $code\n"
    run = f"{{\n{step.line}\n}} > '{place}' 2>&1; code=$?; echo $code > '{place}.code'\n"
    return f"{begin}{run}{end}{judge}"


def _result(command: Command, place: Path) -> Execution:
    ended = Path(f"{place}.end")
    if not ended.exists():
        return Execution(command=command, code=None, output="", seconds=0.0)
    times = [
        float(Path(f"{place}.{name}").read_text(encoding="ascii")) for name in ("begin", "end")
    ]
    code = int(Path(f"{place}.code").read_text(encoding="ascii"))
    return Execution(
        command=command,
        code=code,
        output=place.read_text(encoding="utf-8"),
        seconds=times[1] - times[0],
    )


def missing_lines(result: Execution) -> list[str]:
    """Lines of the page that the command did not print, in their order.

    Numbers with their units, and spaces, may differ.
    """
    printed = [_plain(line) for line in result.output.splitlines()]
    missing, begin = [], 0
    for line in result.command.page_lines:
        if line.strip() in {"", _ANYTHING}:
            continue
        place = _line_with(line, printed, begin)
        if place is None:
            missing.append(line)
        else:
            begin = place + 1
    return missing


def _line_with(expected: str, printed: list[str], begin: int) -> int | None:
    pattern = re.compile(".*".join(re.escape(_plain(part)) for part in expected.split(_ANYTHING)))
    return next((n for n in range(begin, len(printed)) if pattern.fullmatch(printed[n])), None)


def _plain(line: str) -> str:
    return re.sub(r"[=\s]+", " ", _NUMBER.sub("#", line)).strip()


def elapsed(results: list[Execution]) -> float:
    """Seconds of all commands."""
    return sum(result.seconds for result in results)
