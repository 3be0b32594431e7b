"""Which GPUs and cores there are, and who holds them: drivers, inventory, selection, leases, the queue."""
