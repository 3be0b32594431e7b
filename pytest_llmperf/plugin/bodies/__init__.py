"""Test bodies in processes of their own: `llmperf_isolated` and `llmperf_ranks(n)`.

A *body side* is a pytest process (`side`) that runs one test once and answers with its reports.
This process (`hooks`) starts one for an isolated test and one a rank for a test with ranks, waits
with a deadline, and puts together what they say.
"""

SIDE_PLUGIN = "llmperf-body-side"
"""Name of the pytest plugin that makes a process a body side."""

HOOKS_PLUGIN = "llmperf-bodies"
"""Name of the pytest plugin that runs bodies elsewhere (`hooks.Bodies`)."""
