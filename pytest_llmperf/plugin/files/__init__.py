"""The files that a session writes at its end: HTML, Markdown, GitLab, OpenMetrics, pytest-benchmark."""
