"""Quantities that only a server has."""
