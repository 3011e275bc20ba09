"""The sizes of BART that are measured."""

from typing import Any


#: What a config has beside the defaults of HF's `BartConfig`, which are BART-large's.
SIZES: dict[str, dict[str, Any]] = {
    "base": {
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
    },
    "large": {},
}
