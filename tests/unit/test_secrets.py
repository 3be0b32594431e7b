"""A marked secret is in no text that is shown, and what is none stays readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_llmperf.errors import StoreError
from pytest_llmperf.history.address import parse
from pytest_llmperf.history.store import open_for_session
from pytest_llmperf.secrets import masked

CANARY = "c4n4ryS3cret"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://ci:{CANARY}@host/db",
        f"postgresql://ci:a/{CANARY}@host/db",
        f"postgresql://ci:a@{CANARY}@host/db",
        f"postgresql://:{CANARY}@host/db",
        f"postgresql://host/db?password={CANARY}&x=1",
        f"postgresql://host/db?x=1&sslpassword={CANARY}",
        f"http://user:{CANARY}@proxy:3128",
        f"pytest --llmperf-store=postgresql://ci:{CANARY}@h/db -q",
        f"pytest --hub-token {CANARY} tests",
        f"pytest --hub-token={CANARY}",
        f"pytest --api-key   {CANARY}",
        f"vllm serve m --api-key={CANARY}",
        f"AWS_SECRET_ACCESS_KEY={CANARY}",
        f"PGPASSWORD={CANARY} pytest",
        f'{{"hub_token": "{CANARY}"}}',
        f"HF_TOKEN: {CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"hf_{CANARY}",
        f"sk-{CANARY}",
    ],
)
def test_a_marked_secret_is_hidden(text):
    assert CANARY in text
    assert CANARY not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg://ci@host:5432/db",
        'password authentication failed for user "ci"',
        "pytest tests/test_tokens.py::test_ttft --llmperf-gate warn",
        "http://127.0.0.1:8000/v1 gave 20 output tokens of 32",
        "sqlite:////tmp/history.db",
        "/work/user@host/project",
        "--max-tokens-per-s -v",
        "vllm serve m --max-num-batched-tokens 8192 --tokenizer t --token-ms 5 --port 1",
        "decode(new_tokens=11, tokenizer: t)",
    ],
)
def test_what_is_no_secret_stays(text):
    assert masked(text) == text


def test_a_masked_text_stays_as_it_is():
    text = masked(f"postgresql://ci:{CANARY}@host/db?password={CANARY}")
    assert text == "postgresql://ci:***@host/db?password=***"
    assert masked(text) == text


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ci:{CANARY}@host:port/db",
        f"postgresql://ci:a/{CANARY}@host:port/db",
        f"mysql://ci:{CANARY}@host/db",
        f"postgresql://ci:{CANARY}@127.0.0.1:1",
        f"sqlite:///:memory:?password={CANARY}",
    ],
)
def test_the_error_about_a_store_url_has_no_password(tmp_path, url):
    with pytest.raises(StoreError) as caught:
        open_for_session(url, folder=tmp_path)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("query", ["password", "sslpassword"])
def test_a_password_in_the_query_of_a_store_url_is_not_shown(query):
    address = parse(f"postgresql://h/db?{query}={CANARY}", Path("/p"))
    assert CANARY not in address.public_url
    assert address.url.query[query] == CANARY


def test_the_spool_of_a_server_keeps_its_name():
    """What an earlier version left there is found."""
    address = parse("postgresql://u:p@h/db", Path("/p"))
    assert address.public_url == "postgresql+psycopg://u:***@h/db"
    assert address.spool == Path("/p/.llmperf/spool-0e2cd748.jsonl")
