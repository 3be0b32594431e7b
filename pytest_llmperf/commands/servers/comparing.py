"""Two servers, compared by one test that is written for it and stays in `.llmperf/servers`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.server_target import find_server, is_server

FOLDER = Path(".llmperf", "servers")

_TEST = '''"""Written by `llmperf compare`: {before} against {after}."""

import pytest
from pytest_llmperf import Decode

pytestmark = pytest.mark.llmperf(model={model!r}, engine={engine!r}, options={options!r})


def test_two_servers(llm):
    llm.run(Decode(batch=1, prompt_tokens={prompt_tokens}, new_tokens={new_tokens}))
'''


class Work(NamedTuple):
    """What the two servers are asked for: a model under a name, and one sequence at a time."""

    model: str
    engine: str = "server"
    name: str = ""
    tokenizer: str = ""
    prompt_tokens: int = 128
    new_tokens: int = 64

    @property
    def options(self) -> dict[str, str]:
        """The options of the engine that are said."""
        values = {"name": self.name, "tokenizer": self.tokenizer}
        return {option: value for option, value in values.items() if value}


def are_servers(before: str, after: str) -> bool:
    """Whether both sides name servers. Raises UsageError where one alone does."""
    sides = [is_server(before), is_server(after)]
    if any(sides) and not all(sides):
        other = after if sides[0] else before
        raise UsageError(f"{other!r} is not a server, and the other side is one: name two servers.")
    return all(sides)


def compare_servers(before: str, after: str, work: Work, arguments: Sequence[str]) -> int:
    """Measure both side by side by pytest; return its exit code. Raises UsageError."""
    for text in (before, after):
        find_server(text, "llmperf compare")
    if not work.model:
        raise UsageError("two servers are compared with a model: name it by --model.")
    file = _written(before, after, work)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)),
        *(f"--llmperf-server={after}", f"--llmperf-against={before}"),
        *arguments,
    ]
    return subprocess.run(command, check=False).returncode  # noqa: S603 - pytest, on our file


def _written(before: str, after: str, work: Work) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "test_two_servers.py"
    fields = work._asdict() | {"options": work.options}
    text = _TEST.format(before=_plain(before), after=_plain(after), **fields)
    file.write_text(text, encoding="utf-8")
    return file


def _plain(text: str) -> str:
    """Return a text that ends no docstring."""
    return text.replace("\\", "/").replace('"', "'")
