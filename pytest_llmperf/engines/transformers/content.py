"""Where the transformers engine finds `engines.content`, which needs no torch."""

from __future__ import annotations

from pytest_llmperf.engines.content import cache_dir, file_sha256, hash_files, hash_value

__all__ = ["cache_dir", "file_sha256", "hash_files", "hash_value"]
