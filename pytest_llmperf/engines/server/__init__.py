"""Servers as engines: a command that is started and ended, or a URL that already runs.

The worker is the HTTP client.
"""
