"""Generation: from an encoder's outputs to token ids."""

from .config import GenerationConfig
from .inputs import GenerationInputs
from .logits_process import LogitsProcessor, PrefixConstrainedLogitsProcessor
from .mixin import GenerationCall, GenerationMixin
from .output import GenerationOutput
from .state import AbstractStrategy, GenerationState, Progress


__all__ = [
    "AbstractStrategy",
    "GenerationCall",
    "GenerationConfig",
    "GenerationInputs",
    "GenerationMixin",
    "GenerationOutput",
    "GenerationState",
    "LogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "Progress",
]
