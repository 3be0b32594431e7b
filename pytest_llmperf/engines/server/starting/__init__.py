"""How servers are started: in containers, and what their logs say of their start."""
