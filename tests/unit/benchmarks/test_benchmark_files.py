"""The programs of the tests that benchmarks start are where they look for them."""

from __future__ import annotations

import client
import load_generators
import pytest


@pytest.mark.parametrize("program", [client, load_generators], ids=lambda module: module.__name__)
def test_the_scripted_server_is_there(program):
    """Both start the server of the tests."""
    assert program.STUB.is_file()
