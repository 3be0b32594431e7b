"""Commands of `llmperf` that have a file of their own. Each loads what it needs when it runs."""
