"""What was asked for: options with their ini twins, their values, limits and targets."""
