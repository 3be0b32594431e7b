"""What pytest sees: hooks, fixtures, items, markers, the plan and the summary."""
