"""The closed form of `benchmarks/costs.py` beside what XLA compiles for eight devices; run
by `test_scaling.py`.

Arguments: the directory of the benchmarks, and layouts, such as `data=2,tensor=4`.
"""

import io
import sys


sys.path.insert(0, sys.argv[1])

from costs import Layout
from rich.console import Console
from scaling import check

import eqx_bart as eb


CONFIG = eb.BartConfig(
    vocab_size=16384,
    max_position_embeddings=128,
    d_model=256,
    encoder_layers=2,
    decoder_layers=1,
    encoder_ffn_dim=1024,
    decoder_ffn_dim=768,
    encoder_attention_heads=8,
    decoder_attention_heads=8,
)

layouts = (dict(pair.split("=") for pair in text.split(",")) for text in sys.argv[2:])
parsed = tuple(Layout(**{k: int(n) for k, n in sizes.items()}) for sizes in layouts)
printed = io.StringIO()
worst = check(Console(file=printed, width=160), CONFIG, parsed)
assert worst < 0.05, printed.getvalue()
sys.stdout.write("done")
