"""BART as an Equinox object model: exact against Hugging Face's PyTorch BART, and fast."""

from jaxtyping import install_import_hook as _install_import_hook

from . import typechecking as _typechecking


# Every annotation in these rooms, where arrays have shapes, is checked when a function is
# called: under `jit`, while it is traced. `JAXTYPING_DISABLE=1` turns that off. What tasks
# do with each text, outside `jit`, checks by itself: it would take five times as long.
_TASKS = (
    *("classification", "entailment", "infilling", "masks", "minimum_bayes_risk"),
    *("question_answering", "scoring", "summarisation"),
)
_CHECKED = [
    f"{__name__}.{x}"
    for x in ("nn", "generation", "models", "training", "sharding", "testing")
] + [f"{__name__}.tasks.{x}" for x in _TASKS]

with _install_import_hook(_CHECKED, f"{_typechecking.__name__}.typechecker"):
    from . import generation, models, nn, tasks, testing
    from .checkpoint.pretrained import BUILTIN_MODEL
    from .checkpoint.quantization import quantize
    from .config import BartConfig
    from .files.errors import CheckpointError
    from .generation.cache import GenerationCache
    from .generation.config import GenerationConfig
    from .generation.logits_process import LogitsProcessor, PrefixConstrainedLogitsProcessor
    from .generation.output import GenerationOutput
    from .generation.state import GenerationState
    from .models.bart import BartModel
    from .models.cache import BartCache
    from .models.causal_lm import BartForCausalLM
    from .models.conditional_generation import BartForConditionalGeneration
    from .models.inputs import shift_tokens_right
    from .models.outputs import (
        BaseModelOutput,
        BaseModelOutputWithCrossAttentions,
        CausalLMOutputWithCrossAttentions,
        Seq2SeqLMOutput,
        Seq2SeqModelOutput,
        Seq2SeqQuestionAnsweringModelOutput,
        Seq2SeqSequenceClassifierOutput,
    )
    from .models.question_answering import BartForQuestionAnswering
    from .models.sequence_classification import BartForSequenceClassification
    from .nn.cache import KeyValues
    from .nn.checks import checks
    from .pictures.attention import plot_attention
    from .pictures.beams import plot_beams
    from .pictures.text import html_token_log_probs, plot_token_log_probs
    from .sharding import LAYOUT, shard
    from .training.batches import length_grouped, pack, pad, Seq2SeqBatch
    from .training.distillation import distillation_loss, shrink
    from .training.lora import lora, merge_lora
    from .training.losses import (
        chunked_cross_entropy,
        classification_loss,
        cross_entropy,
        LossSum,
        question_answering_loss,
        seq2seq_loss,
    )
    from .training.noising import (
        document_rotation,
        sentence_permutation,
        text_infilling,
        token_deletion,
        token_masking,
    )
    from .training.parameters import cast, gradient_checkpointing, trainable
    from .training.peft import load_lora, save_lora


__all__ = [
    "BUILTIN_MODEL",
    "LAYOUT",
    "BartCache",
    "BartConfig",
    "BartForCausalLM",
    "BartForConditionalGeneration",
    "BartForQuestionAnswering",
    "BartForSequenceClassification",
    "BartModel",
    "BaseModelOutput",
    "BaseModelOutputWithCrossAttentions",
    "CausalLMOutputWithCrossAttentions",
    "CheckpointError",
    "GenerationCache",
    "GenerationConfig",
    "GenerationOutput",
    "GenerationState",
    "KeyValues",
    "LogitsProcessor",
    "LossSum",
    "PrefixConstrainedLogitsProcessor",
    "Seq2SeqBatch",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
    "Seq2SeqQuestionAnsweringModelOutput",
    "Seq2SeqSequenceClassifierOutput",
    "cast",
    "checks",
    "chunked_cross_entropy",
    "classification_loss",
    "cross_entropy",
    "distillation_loss",
    "document_rotation",
    "generation",
    "gradient_checkpointing",
    "html_token_log_probs",
    "length_grouped",
    "load_lora",
    "lora",
    "merge_lora",
    "models",
    "nn",
    "pack",
    "pad",
    "plot_attention",
    "plot_beams",
    "plot_token_log_probs",
    "quantize",
    "question_answering_loss",
    "save_lora",
    "sentence_permutation",
    "seq2seq_loss",
    "shard",
    "shift_tokens_right",
    "shrink",
    "tasks",
    "testing",
    "text_infilling",
    "token_deletion",
    "token_masking",
    "trainable",
]
