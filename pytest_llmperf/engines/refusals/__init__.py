"""Plans that cannot be loaded, and the reason in words, before anything is loaded."""
