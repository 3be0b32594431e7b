"""The vLLM engine.

Importing this package imports nothing heavy: `limits` and `arguments` are read in any process.
"""
