"""HF's generation settings that `generate` does not have."""

from typing import Any


#: Settings that would change the result, with the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "constraints": ([],),
    "dola_layers": (),
    "force_words_ids": ([],),
    "guidance_scale": (1.0,),
    "low_memory": (False,),
    "max_time": (),
    "output_hidden_states": (False,),
    "penalty_alpha": (0.0,),
    "stop_strings": ([],),
    "token_healing": (False,),
    "top_h": (),
    "watermarking_config": (),
}
#: Settings about how HF computes the result.
INERT = (
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "is_assistant",
    "max_cache_len",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "use_cache",
    "use_mtp",
)
