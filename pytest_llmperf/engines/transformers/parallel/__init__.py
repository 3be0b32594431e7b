"""One model over several devices: the process group, the ways to cut a model, and what each rank holds afterwards."""
