"""Checkpoints: how weights are read from and written to Hugging Face's files."""

from .errors import CheckpointError
from .pretrained import BUILTIN_MODEL, PretrainedModel


__all__ = ["BUILTIN_MODEL", "CheckpointError", "PretrainedModel"]
