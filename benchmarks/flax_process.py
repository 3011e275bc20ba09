"""Hugging Face's Flax BART, of transformers 4, as a process that `generate.py` starts.

python benchmarks/flax_process.py CHECKPOINT DTYPE

Each line of standard input is `generate`'s arguments in JSON, `input_ids` among them; the
answer is a line of tokens. All of a call is one compiled program.
"""

import functools
import importlib
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp


def main() -> None:
    """Answers until the input ends."""
    checkpoint, dtype = sys.argv[1:]
    modeling: Any = importlib.import_module("transformers.models.bart.modeling_flax_bart")
    cls = modeling.FlaxBartForConditionalGeneration
    model = cls.from_pretrained(checkpoint, from_pt=True, dtype=jnp.dtype(dtype))
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), model.params)

    @functools.partial(jax.jit, static_argnames=("num_beams", "min_length", "max_length"))
    def generate(params: Any, ids: Any, **settings: Any) -> Any:
        mask = jnp.ones_like(ids)
        found = model.generate(ids, attention_mask=mask, params=params, **settings)
        return found.sequences

    for line in sys.stdin:
        settings = json.loads(line)
        ids = jnp.asarray(settings.pop("input_ids"), jnp.int32)
        print(json.dumps(generate(params, ids, **settings).tolist()), flush=True)


if __name__ == "__main__":
    main()
