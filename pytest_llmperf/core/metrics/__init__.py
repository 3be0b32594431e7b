"""From traces to quantities. Pure."""
