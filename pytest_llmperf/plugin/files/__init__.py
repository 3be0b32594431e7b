"""The files that a session writes at its end.

They are HTML, Markdown, GitLab, OpenMetrics and pytest-benchmark's format.
"""
