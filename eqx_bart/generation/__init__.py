"""Generation: from an encoder's outputs to token ids."""

from .cache import GenerationCache
from .call import GenerationCall, LoopSettings
from .config import GenerationConfig
from .inputs import GenerationInputs
from .logits_process import LogitsProcessor, PrefixConstrainedLogitsProcessor
from .mixin import GenerationMixin
from .output import GenerationOutput
from .state import AbstractStrategy, GenerationState, Progress


__all__ = [
    "AbstractStrategy",
    "GenerationCache",
    "GenerationCall",
    "GenerationConfig",
    "GenerationInputs",
    "GenerationMixin",
    "GenerationOutput",
    "GenerationState",
    "LogitsProcessor",
    "LoopSettings",
    "PrefixConstrainedLogitsProcessor",
    "Progress",
]
