"""What `llmperf compare` does with two servers."""
