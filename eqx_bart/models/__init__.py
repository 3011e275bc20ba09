"""BART: its encoder, decoder and cache, and a model for each head."""

from .bart import BartModel
from .cache import BartCache
from .causal_lm import BartForCausalLM
from .conditional_generation import BartForConditionalGeneration
from .decoder import BartDecoder
from .encoder import BartEncoder
from .language_model import AbstractLMHead, LanguageModel, Projection
from .layers import BartDecoderLayer, BartEncoderLayer, DecoderLayerCache
from .question_answering import BartForQuestionAnswering
from .seq2seq import Seq2SeqModel
from .sequence_classification import BartForSequenceClassification, ClassificationHead
from .stack import BartStack


__all__ = [
    "AbstractLMHead",
    "BartCache",
    "BartDecoder",
    "BartDecoderLayer",
    "BartEncoder",
    "BartEncoderLayer",
    "BartForCausalLM",
    "BartForConditionalGeneration",
    "BartForQuestionAnswering",
    "BartForSequenceClassification",
    "BartModel",
    "BartStack",
    "ClassificationHead",
    "DecoderLayerCache",
    "LanguageModel",
    "Projection",
    "Seq2SeqModel",
]
