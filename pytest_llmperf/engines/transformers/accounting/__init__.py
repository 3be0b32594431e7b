"""What a loaded model holds beside its linear layers, and what one step of it costs."""
