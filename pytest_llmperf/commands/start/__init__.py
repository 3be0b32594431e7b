"""The commands of the first hours: `init`, `run` and `record`."""
