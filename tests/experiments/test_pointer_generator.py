"""A pointer-generator: the next token is one of the vocabulary, or a copy of one of the
source's, where the decoder attends.

Source: See et al. 2017 (arXiv:1704.04368), section 2.2.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from oracle import assert_close
from support import check_all, checkpoint, IDS, LABELS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class PointerHead(eb.models.AbstractLMHead):
    """Log-probabilities of a mixture: `p * vocabulary + (1 - p) * copies`, where `p` is the
    sigmoid of `gate` and copies go by the last layer's attention to the source."""

    gate: eb.nn.AbstractLinear
    needs_attentions: ClassVar[bool] = True

    def __call__(self, decoded, source, projection):
        if source.input_ids is None:
            raise ValueError("A PointerHead copies from the source: pass its input_ids.")
        states = decoded.last_hidden_state
        dtype = jnp.promote_types(states.dtype, jnp.float32)
        vocabulary = jax.nn.softmax(projection(states).astype(dtype))
        attention = jnp.mean(decoded.cross_attentions[-1], axis=1, dtype=dtype)
        tokens = jax.nn.one_hot(source.input_ids, vocabulary.shape[-1], dtype=dtype)
        copies = jnp.einsum("bns,bsv->bnv", attention, tokens)
        p = jax.nn.sigmoid(self.gate(states).astype(dtype))
        mixture = p * vocabulary + (1 - p) * copies
        return jnp.log(jnp.maximum(mixture, jnp.finfo(dtype).tiny)).astype(states.dtype)


class PointerBart(eb.BartForConditionalGeneration):
    """BART that may copy."""

    def __init__(self, config, generation_config=None, *, key):
        bart_key, gate_key = jax.random.split(key)
        super().__init__(config, generation_config, key=bart_key)
        gate = eb.nn.Linear(config.d_model, 1, init_std=config.init_std, key=gate_key)
        self.head = PointerHead(gate)


# --8<-- [end:model]


@pytest.fixture
def model(tmp_path):
    """BART's checkpoint, with a new gate."""
    checkpoint(tmp_path / "bart")
    with pytest.warns(UserWarning, match=r"head\.gate\.weight.*drawn at random"):
        return PointerBart.from_pretrained(tmp_path / "bart", key=jax.random.key(1))


@pytest.mark.slow
def test_pointer_generator(model, tmp_path):
    check_all(model, lambda m: m.head, tmp_path / "pointer")


def test_all_calls_go_through_the_head(model):
    bart = eqx.tree_at(lambda m: m.head, model, None)
    targets = LABELS[:, :3]
    out = model(IDS, MASK, targets, output_attentions=True)
    assert_close(jnp.sum(jnp.exp(out.logits), axis=-1), np.ones((2, 3)), 1e-5)
    plain = jax.nn.softmax(bart(IDS, MASK, targets).logits)
    states = model.model(IDS, MASK, targets).last_hidden_state
    p = jax.nn.sigmoid(model.head.gate(states))
    copies = np.zeros(plain.shape)
    for (row, i), token in np.ndenumerate(IDS):
        copies[row, :, token] += out.cross_attentions[-1][row, :, :, i].mean(0)
    assert_close(jnp.exp(out.logits), p * plain + (1 - p) * copies, 1e-5)
    assert model(IDS, MASK, targets).cross_attentions is None

    encoded = model.encode(IDS, MASK)
    mask = {"encoder_attention_mask": MASK}
    options = {"encoder_outputs": encoded, "encoder_input_ids": IDS, **mask}
    assert_close(model.decode(targets, **options).logits, out.logits, 1e-5)
    cache = model.init_cache(encoded, 3, MASK, input_ids=IDS)
    assert_close(model.decode(targets, cache)[0].logits, out.logits, 1e-5)
    with pytest.raises(ValueError, match="pass its input_ids"):
        model.decode(targets, encoder_outputs=encoded, **mask)
    with pytest.raises(ValueError, match="pass its input_ids"):
        model.generate(encoder_outputs=encoded, attention_mask=MASK, max_new_tokens=2)
    found = model.generate(IDS, MASK, encoder_outputs=encoded, max_new_tokens=4)
    assert np.array_equal(
        found.sequences, model.generate(IDS, MASK, max_new_tokens=4).sequences
    )

    loss = eb.seq2seq_loss(model, IDS, MASK, LABELS)
    inputs = eb.shift_tokens_right(LABELS, 1, 2)
    assert_close(
        loss.mean, eb.cross_entropy(model(IDS, MASK, inputs).logits, LABELS).mean, 1e-6
    )
    with pytest.raises(TypeError, match=r"chunk_size needs .* PointerHead"):
        eb.seq2seq_loss(model, IDS, MASK, LABELS, chunk_size=2)


@pytest.mark.parametrize("side", ["right", "left"])
def test_it_copies(model, side):
    """With the gate shut, nothing is said that is not in the source."""
    ids = np.array([[0, 5, 9, 17, 5], [0, 23, 8, 1, 1]])
    mask = ids != 1
    if side == "left":
        ids, mask = (np.stack([x[0], np.roll(x[1], 2)]) for x in (ids, mask))
    shut = eqx.tree_at(lambda m: m.head.gate.bias, model, jnp.full(1, -100.0))
    for beams in (1, 3):
        found = shut.generate(ids, mask, num_beams=beams, max_new_tokens=6).sequences
        for row in (0, 1):
            assert set(found[row, 1:].tolist()) <= set(ids[row][mask[row]].tolist())
    # A model without the copies says other things.
    bart = eqx.tree_at(lambda m: m.head, model, None)
    said = bart.generate(ids, mask, max_new_tokens=6).sequences
    assert not set(said[0, 1:].tolist()) <= set(ids[0].tolist())


def test_shapes_are_checked(model):
    gate = eb.nn.Linear(31, 1, init_std=1.0, key=jax.random.key(1))
    wrong = eqx.tree_at(lambda m: m.head.gate, model, gate)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(inner|d_in)=48"):
        wrong(IDS, MASK)
