"""What an answer may have at most: bytes, messages, and time without a message."""

from __future__ import annotations

from pytest_llmperf.engines.server.failures import no_message

SPARE_MESSAGES = 100
MESSAGES_A_TOKEN = 4
SPARE_BYTES = 2**20
BYTES_A_TOKEN = 2**12
CHUNKS_A_MESSAGE = 16
"""What an answer may have at most: so much, and so much for each token that was asked for.

A stream that goes on for ever ends there, in bounded memory. Bytes come in chunks, each of which
takes some 150 bytes more: a server that sends them one by one fills no memory either.
"""


class Bounds:
    """What an answer may have at most, and how long it may be without a message.

    Bytes that are no message (the comments that keep a connection alive) do not count.
    """

    def __init__(self, n_output_tokens: int, sent_ns: int, timeout_s: float) -> None:
        self.failure = ""
        self._n_output_tokens = n_output_tokens
        self._most_messages = SPARE_MESSAGES + MESSAGES_A_TOKEN * n_output_tokens
        self._most_bytes = SPARE_BYTES + BYTES_A_TOKEN * n_output_tokens
        self._timeout_s = timeout_s
        self._last_ns = sent_ns
        self._n_messages = self._n_bytes = self._n_chunks = 0

    def exceeded(self, t_ns: int, data: bytes) -> bool:
        """Whether these bytes are too many, or came when no message had come for too long."""
        n_messages = data.count(b"data:")
        self._n_messages += n_messages
        self._n_bytes += len(data)
        self._n_chunks += 1
        if self._has_no_end():
            self.failure = (
                f"the answer has no end: {self._n_messages} messages and {self._n_bytes} bytes "
                f"came for {self._n_output_tokens} tokens"
            )
        elif not n_messages and t_ns - self._last_ns > self._timeout_s * 1e9:
            self.failure = no_message(self._timeout_s, f"{self._n_messages} messages")
        elif n_messages:
            self._last_ns = t_ns
        return bool(self.failure)

    def _has_no_end(self) -> bool:
        return (
            self._n_messages > self._most_messages
            or self._n_bytes > self._most_bytes
            or self._n_chunks > CHUNKS_A_MESSAGE * self._most_messages
        )
