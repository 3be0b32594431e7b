"""Side by side (`--llmperf-against`): the same test at another commit, or on another server.

A *base side* is a pytest process of its own (`side`), in the base's tree or under its interpreter.
It runs the base's test function and waits in it wherever the test measures; this process
(`comparison`) then asks it for blocks, in turn with its own, until rule B decides. See
docs/decisions/0012.
"""

SIDE_PLUGIN = "llmperf-base-side"
"""Name of the pytest plugin that makes a process a base side."""
