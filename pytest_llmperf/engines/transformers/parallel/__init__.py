"""One model over several devices: their process group, and the ways to cut a model for them."""
