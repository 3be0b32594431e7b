"""pytest hooks and fixtures. Replaced by the real ones shortly."""
