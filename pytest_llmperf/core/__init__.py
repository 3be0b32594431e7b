"""Values and pure functions: no pytest, no torch, no files, no clock."""
