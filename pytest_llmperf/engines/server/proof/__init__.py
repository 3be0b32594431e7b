"""Which settings a server runs with: what it says, what a probe shows, and what neither tells."""
