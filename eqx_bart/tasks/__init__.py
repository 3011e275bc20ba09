"""Text in, answers out: what BART's checkpoints are used for, each as one function.

A task takes one text, a list of texts, or another iterable of them, of any length, and
returns one answer, a list of answers, or an iterator. Underneath is a pure function of
token ids, for a `jit` of your own.
"""

from .classification import Classification, classify, label_scores
from .entailment import entailment_scores, zero_shot
from .infilling import infill, Infilling
from .masks import fill_mask, Filling, mask_log_probs
from .minimum_bayes_risk import generate_minimum_risk, minimum_risk, MinimumRisk
from .prediction import predict
from .question_answering import Answer, answer, best_spans, Spans
from .scoring import Candidate, rank, Score, score, token_log_probs
from .summarisation import summarise, summarize, Summary, Window


__all__ = [
    "Answer",
    "Candidate",
    "Classification",
    "Filling",
    "Infilling",
    "MinimumRisk",
    "Score",
    "Spans",
    "Summary",
    "Window",
    "answer",
    "best_spans",
    "classify",
    "entailment_scores",
    "fill_mask",
    "generate_minimum_risk",
    "infill",
    "label_scores",
    "mask_log_probs",
    "minimum_risk",
    "predict",
    "rank",
    "score",
    "summarise",
    "summarize",
    "token_log_probs",
    "zero_shot",
]
