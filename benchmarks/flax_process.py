"""Hugging Face's Flax BART, of transformers 4, as a process that `generate.py` starts.

python benchmarks/flax_process.py CHECKPOINT DTYPE

Each line of standard input is `generate`'s arguments in JSON, `input_ids` among them; the
answer is a line of tokens. All of a call is one compiled program.
"""

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
    programs = dict[str, Any]()
    for line in sys.stdin:
        asked = json.loads(line)
        ids = jnp.asarray(asked.pop("input_ids"), jnp.int32)
        settings = json.dumps(asked)
        if settings not in programs:

            def generate(params: Any, ids: Any, asked: Any = asked) -> Any:
                mask = jnp.ones_like(ids)
                return model.generate(ids, attention_mask=mask, params=params, **asked)

            programs[settings] = jax.jit(generate)
        print(json.dumps(programs[settings](params, ids).sequences.tolist()), flush=True)


if __name__ == "__main__":
    main()
