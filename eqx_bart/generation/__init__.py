"""Generation: from what an encoder says to token ids."""

from .config import GenerationConfig, Settings
from .greedy import GenerationOutput, greedy_search


__all__ = ["GenerationConfig", "GenerationOutput", "Settings", "greedy_search"]
