"""Performance tests for LLM inference."""
