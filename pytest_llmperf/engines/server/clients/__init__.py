"""Several client processes for one load, where a single one would be the limit."""
