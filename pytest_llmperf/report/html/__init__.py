"""The HTML report.

A record's way: `groups` puts runs together that may be compared, a section's builder makes blocks
of them, the template shows the blocks.

The blocks of a section are plain values (`blocks`), made by one file each: `overview`, `strategies`
(with `tradeoffs`, `latency`, `usage`), `answers`, `effect`, `sides`, `history`, `listing`.
`page.build` puts them through assets/report.html.j2; assets/report.js draws each figure from the
JSON beside it.
"""

from pytest_llmperf.report.html.content import Content
from pytest_llmperf.report.html.page import build

__all__ = ["Content", "build"]
