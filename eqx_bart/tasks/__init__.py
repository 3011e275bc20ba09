"""Text in, answers out: what BART's checkpoints are used for, each as one function.

A task takes one text, a list of texts, or another iterable of them, of any length, and
returns one answer, a list of answers, or an iterator. Underneath is a pure function of
token ids, for a `jit` of your own.
"""

from .classification import Classification, classify, label_scores
from .entailment import entailment_scores, zero_shot
from .prediction import predict
from .scoring import Candidate, rank, Score, score, token_log_probs
from .summarisation import summarise, summarize, Summary, Window


__all__ = [
    "Candidate",
    "Classification",
    "Score",
    "Summary",
    "Window",
    "classify",
    "entailment_scores",
    "label_scores",
    "predict",
    "rank",
    "score",
    "summarise",
    "summarize",
    "token_log_probs",
    "zero_shot",
]
