"""What a model's name means, and what its files say without being loaded.

Nothing heavy is imported here.
"""
