"""Conversations with a server: contexts that grow by its own answers, turn by turn."""
