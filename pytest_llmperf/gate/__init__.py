"""The gate: each run held against the accepted sessions of its series."""
