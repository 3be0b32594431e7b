"""Whether a model's outputs agree with a reference's: comparisons, rules, task accuracy. Pure."""
