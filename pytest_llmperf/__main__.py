"""`python -m pytest_llmperf` is the `llmperf` command."""

from pytest_llmperf.commands.cli import main

main(prog_name="llmperf")
