"""BART as an Equinox object model: exact against Hugging Face's PyTorch BART, and fast."""

from jaxtyping import install_import_hook as _install_import_hook

from . import typechecking as _typechecking


# Every annotation in this package is checked when a function is called: under `jit`, while
# it is traced. `JAXTYPING_DISABLE=1` turns that off.
with _install_import_hook("eqx_bart", f"{_typechecking.__name__}.typechecker"):
    from .adapters import load_lora, lora, merge_lora, save_lora
    from .cache import BartCache, KeyValues
    from .checkpoint.errors import CheckpointError
    from .checkpoint.pretrained import BUILTIN_MODEL
    from .config import BartConfig
    from .generation import (
        GenerationConfig,
        GenerationOutput,
        GenerationState,
        LogitsProcessor,
        PrefixConstrainedLogitsProcessor,
    )
    from .heads import (
        BartForCausalLM,
        BartForConditionalGeneration,
        BartForQuestionAnswering,
        BartForSequenceClassification,
    )
    from .losses import (
        chunked_cross_entropy,
        classification_loss,
        cross_entropy,
        LossSum,
        question_answering_loss,
        seq2seq_loss,
    )
    from .model import BartModel, shift_tokens_right
    from .noising import (
        document_rotation,
        sentence_permutation,
        text_infilling,
        token_deletion,
        token_masking,
    )
    from .outputs import (
        BaseModelOutput,
        BaseModelOutputWithCrossAttentions,
        CausalLMOutputWithCrossAttentions,
        Seq2SeqLMOutput,
        Seq2SeqModelOutput,
        Seq2SeqQuestionAnsweringModelOutput,
        Seq2SeqSequenceClassifierOutput,
    )
    from .training import cast, gradient_checkpointing, trainable


__all__ = [
    "BUILTIN_MODEL",
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
    "GenerationConfig",
    "GenerationOutput",
    "GenerationState",
    "KeyValues",
    "LogitsProcessor",
    "LossSum",
    "PrefixConstrainedLogitsProcessor",
    "Seq2SeqLMOutput",
    "Seq2SeqModelOutput",
    "Seq2SeqQuestionAnsweringModelOutput",
    "Seq2SeqSequenceClassifierOutput",
    "cast",
    "chunked_cross_entropy",
    "classification_loss",
    "cross_entropy",
    "document_rotation",
    "gradient_checkpointing",
    "load_lora",
    "lora",
    "merge_lora",
    "question_answering_loss",
    "save_lora",
    "sentence_permutation",
    "seq2seq_loss",
    "shift_tokens_right",
    "text_infilling",
    "token_deletion",
    "token_masking",
    "trainable",
]
