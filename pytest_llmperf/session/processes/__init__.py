"""How a measurement is spread over fresh processes: which and how many."""
