"""What `llmperf import` does with files of other tools."""
