"""Checkpoints: how weights are read from and written to Hugging Face's files."""

from .errors import CheckpointError
from .pretrained import PretrainedModel


__all__ = ["CheckpointError", "PretrainedModel"]
