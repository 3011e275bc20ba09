"""Checkpoints: which tensor of a file is which array of a module, and the base of all
models, which loads and saves them."""
