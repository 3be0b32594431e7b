"""From quantities to verdicts: estimates, claims, and the three rules. Pure."""
