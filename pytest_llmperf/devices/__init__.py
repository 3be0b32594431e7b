"""Which GPUs and cores there are, and who holds them.

That is drivers, inventory, selection, leases and their queue.
"""
