"""Another server for a test: what its words mean, and what of the test's own options stays."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.against_target import find_target
from pytest_llmperf.settings.server_target import find_server, is_server, serves, with_server

OWN = {"args": "--x", "program": "vllm", "name": "m", "tokenizer": "/t", "image": "old"}


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("http://10.0.0.7:8000/v1", "url", "http://10.0.0.7:8000/v1"),
        ("https://host", "url", "https://host"),
        ("image:vllm/vllm-openai:v0.11.0", "image", "vllm/vllm-openai:v0.11.0"),
        (" command:serve {model} --port {port}", "command", "serve {model} --port {port}"),
        ("program:.venv-old/bin/vllm", "program", ".venv-old/bin/vllm"),
        ("args:--kv-cache-dtype fp8", "args", "--kv-cache-dtype fp8"),
    ],
)
def test_a_server_is_named_by_its_kind(text, kind, value):
    """An image's tag has a colon of its own."""
    target = find_server(text)
    assert (target.kind, target.value) == (kind, value)
    assert is_server(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vllm", "names no server"),
        ("image:", "names no server"),
        ("http://", "names no server"),
        ("imgae:x", "names no server"),
        ("command:vllm serve", r"has no \{port\}"),
    ],
)
def test_what_is_no_server_is_refused_with_what_is_one(text, words):
    """The option is named, too."""
    with pytest.raises(UsageError, match=words) as caught:
        find_server(text, "--llmperf-against")
    assert "--llmperf-against" in str(caught.value)
    assert find_server(" ") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h:1", {"name": "m", "tokenizer": "/t", "url": "http://h:1"}),
        ("image:new", {"args": "--x", "name": "m", "tokenizer": "/t", "image": "new"}),
        ("program:p", {"args": "--x", "name": "m", "tokenizer": "/t", "program": "p"}),
        ("args:--y", {**OWN, "args": "--y"}),
    ],
)
def test_one_thing_of_a_preset_changes_and_the_rest_stays(text, expected):
    """A version is an image or a program; its arguments are the test's."""
    assert with_server(OWN, "server:vllm", find_server(text)) == expected


def test_other_engines_have_no_server():
    """Their options are as they were; nor are they changed without a target."""
    assert with_server({"a": 1}, "transformers", find_server("http://h")) == {"a": 1}
    assert with_server(OWN, "server:vllm", None) == OWN
    assert not serves("transformers")
    assert serves("server")
    assert serves("server:llama.cpp")


@pytest.mark.parametrize(
    ("engine", "text"), [("server:vllm", "command:a {port}"), ("server", "program:vllm")]
)
def test_a_server_that_an_engine_has_no_use_for_is_refused(engine, text):
    """With what can be named in its place."""
    with pytest.raises(UsageError, match="in the place of"):
        with_server({}, engine, find_server(text))


def test_a_base_may_be_a_server(tmp_path):
    """It has the project's own tree. A path is still a path, and a wrong server is refused."""
    target = find_target("http://h:8000", tmp_path)
    assert (target.kind, target.name, target.path) == ("server", "http://h:8000", tmp_path)
    assert find_target(str(tmp_path), tmp_path).kind == "folder"
    with pytest.raises(UsageError, match="--llmperf-against"):
        find_target("image:", tmp_path)
