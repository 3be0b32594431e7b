"""What was asked for: options with their ini twins, their values, limits, targets, and the project's folders."""
