"""Files: formats of checkpoints, the hub, JSON, and how a directory is replaced as a whole.

Nothing here knows JAX's modules, or BART.
"""
