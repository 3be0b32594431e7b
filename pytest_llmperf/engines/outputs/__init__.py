"""Token ids in, answers out: inputs, decoding, the reference's outputs, scoring, tasks.

Shared by engines with torch.
"""
