"""Generation: from a model and an input to token ids."""

from .config import GenerationConfig
from .generate import generate, GenerationOutput


__all__ = ["GenerationConfig", "GenerationOutput", "generate"]
