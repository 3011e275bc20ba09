"""The parts that BART is made of, and the contracts of those that may be replaced."""

from .attention import (
    AbstractAttention,
    Attention,
    dot_product_attention,
    merge_heads,
    split_heads,
)
from .buffer import Buffer
from .cache import KeyValues
from .dropout import LayerDrop, split_key
from .embedding import (
    AbstractEmbedding,
    AbstractPositionalEmbedding,
    Embedding,
    LearnedPositionalEmbedding,
    NoPositionalEmbedding,
)
from .feed_forward import AbstractFeedForward, FeedForward, transform
from .layer import (
    AbstractLayer,
    Context,
    cross_attend,
    Layers,
    RepeatedLayer,
    self_attend,
    Show,
    Shown,
    Source,
)
from .linear import AbstractLinear, Linear, LowRankLinear
from .norm import LayerNorm
from .quantized import Int8Embedding, Int8Linear
from .stored import AbstractStored, AbstractUnstorable, INLINED, TRANSPOSED


__all__ = [
    "INLINED",
    "TRANSPOSED",
    "AbstractAttention",
    "AbstractEmbedding",
    "AbstractFeedForward",
    "AbstractLayer",
    "AbstractLinear",
    "AbstractPositionalEmbedding",
    "AbstractStored",
    "AbstractUnstorable",
    "Attention",
    "Buffer",
    "Context",
    "Embedding",
    "FeedForward",
    "Int8Embedding",
    "Int8Linear",
    "KeyValues",
    "LayerDrop",
    "LayerNorm",
    "Layers",
    "LearnedPositionalEmbedding",
    "Linear",
    "LowRankLinear",
    "NoPositionalEmbedding",
    "RepeatedLayer",
    "Show",
    "Shown",
    "Source",
    "cross_attend",
    "dot_product_attention",
    "merge_heads",
    "self_attend",
    "split_heads",
    "split_key",
    "transform",
]
