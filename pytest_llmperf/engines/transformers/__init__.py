"""The transformers engine. Importing a module of this package may import torch: only a worker does."""
