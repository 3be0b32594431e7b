"""Beyond one host: a Ray cluster lends bundles of devices, and the ranks of a model run there.

`driver` is a process of its own that holds the connection to Ray, so that neither pytest nor a test
that uses Ray itself meets it; `node` runs on the cluster's hosts; the rest is the session's side.
"""
