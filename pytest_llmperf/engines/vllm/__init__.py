"""The vLLM engine.

Importing this package imports nothing heavy: `capabilities`, `refusals` and `arguments` are read in
any process.
"""
