"""What a loaded model holds and does, seen from its tensors and its calls, never from its plan."""
