"""Units for limits in tests. Times are in seconds, sizes in bytes; multiply to get there."""

s = 1.0
ms = 1e-3
us = 1e-6

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40
