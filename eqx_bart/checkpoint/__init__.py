"""Checkpoints: how weights are read from and written to Hugging Face's files."""
