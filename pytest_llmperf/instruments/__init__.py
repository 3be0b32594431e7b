"""Readings of a device: torch's runtime, NVML, energy, memory, layers, the other ranks."""
