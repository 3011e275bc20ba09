"""A mixture of experts: each token goes to one of several feed-forward blocks, which a
router chooses, and a loss keeps the experts equally busy.

Source: Fedus et al. 2021 (arXiv:2101.03961), section 2. As no expert has a capacity that
tokens compete for, no token depends on others, and a cache changes nothing.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jaxtyping import Array, Float
from oracle import assert_close
from support import check_all, checkpoint, CONFIG, IDS, LABELS, MASK

import eqx_bart as eb


# --8<-- [start:model]
class MixtureOfExperts(eb.nn.AbstractFeedForward):
    """The likeliest expert's answer, times its probability."""

    router: eb.nn.AbstractLinear
    experts: tuple[eb.nn.AbstractFeedForward, ...]

    def __call__(self, x: Float[Array, "batch new d_model"], context, *, key):
        logits = self.router(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        probabilities = jax.nn.softmax(logits)
        num_experts = len(self.experts)
        is_chosen = jax.nn.one_hot(jnp.argmax(logits, axis=-1), num_experts, dtype=bool)
        gates = jnp.where(is_chosen, probabilities, 0).astype(x.dtype)
        # Each expert sees all tokens here, which is simple, and does for a few experts.
        keys = eb.nn.split_key(key, num_experts)
        outputs = [e(x, context, key=k)[0] for e, k in zip(self.experts, keys, strict=True)]
        mixed = jnp.einsum("bne,ebnd->bnd", gates, jnp.stack(outputs))
        mask = context.attention_mask
        is_token = jnp.ones(x.shape[:2], bool) if mask is None else mask
        shares, means = (
            jnp.mean(y, axis=(0, 1), where=is_token[..., None], dtype=logits.dtype)
            for y in (is_chosen, probabilities)
        )
        balance = num_experts * jnp.sum(shares * means)
        return mixed, {"balance_loss": balance}


class MixtureBart(eb.BartForConditionalGeneration):
    """BART, of whose layers each has `config.extra["num_experts"]` feed-forward blocks."""

    def __init__(self, config, generation_config=None, *, key):
        bart_key, *router_keys = jax.random.split(key, 1 + 24)
        super().__init__(config, generation_config, key=bart_key)
        num_experts, keys = config.extra["num_experts"], iter(router_keys)

        def mixture(block):
            router = eb.nn.Linear(
                config.d_model,
                num_experts,
                use_bias=False,
                init_std=config.init_std,
                key=next(keys),
            )
            return MixtureOfExperts(router, (block,) * num_experts)

        self.model = eqx.tree_at(blocks, self.model, replace_fn=mixture)


def blocks(model):
    """The feed-forward blocks of a `BartModel`."""
    layers = [*model.encoder.layers, *model.decoder.layers]
    return [layer.feed_forward for layer in layers]


def balanced_loss(model, input_ids, attention_mask, labels, *, weight=0.01, key=None):
    """The cross-entropy of `labels`, and `weight` times what the experts' balance lacks."""
    ids = (model.config.pad_token_id, model.config.decoder_start_token_id)
    decoder_input_ids = eb.shift_tokens_right(labels, *ids)
    out = model(input_ids, attention_mask, decoder_input_ids, key=key)
    balance = out.encoder_shown["balance_loss"] + out.decoder_shown["balance_loss"]
    return eb.cross_entropy(out.logits, labels).mean + weight * jnp.mean(jnp.array(balance))


# --8<-- [end:model]


def loss_of(model, weight=0.01):
    return balanced_loss(model, IDS, MASK, LABELS, weight=weight)


@pytest.fixture
def model(tmp_path):
    config = dataclasses.replace(CONFIG, extra={"num_experts": 3})
    bart = checkpoint(tmp_path / "bart", config)
    model = eqx.nn.inference_mode(MixtureBart(config, key=jax.random.key(1)))
    # Three different experts, all of them made of the checkpoint's block.
    keys = iter(jax.random.split(jax.random.key(2), 100))

    def moved(mixture, block):
        def expert():
            return jax.tree.map(
                lambda x: (
                    x + 0.1 * jax.random.normal(next(keys), x.shape)
                    if eqx.is_array(x)
                    else x
                ),
                block,
            )

        return MixtureOfExperts(mixture.router, tuple(expert() for _ in range(3)))

    pairs = zip(blocks(model.model), blocks(bart.model), strict=True)
    new = [moved(mixture, block) for mixture, block in pairs]
    return eqx.tree_at(lambda m: m.model, model, eqx.tree_at(blocks, bart.model, new))


@pytest.mark.slow
def test_mixture_of_experts(model, tmp_path):
    check_all(
        model, lambda m: [x.router for x in blocks(m.model)], tmp_path / "mixture", loss_of
    )


def test_its_loss_reaches_the_user(model):
    out = model(IDS, MASK, LABELS[:, :3])
    assert len(out.encoder_shown["balance_loss"]) == 1
    assert len(out.decoder_shown["balance_loss"]) == 2
    assert model.decode(LABELS[:, :3], encoder_outputs=model.encode(IDS)).shown
    first = model.model.encoder.layers[0]
    seen = []
    probe = eqx.tree_at(lambda m: m.router, first.feed_forward, Spy(seen))
    eqx.tree_at(lambda m: m.model.encoder.layers[0].feed_forward, model, probe)(IDS, MASK)
    logits = first.feed_forward.router(seen[0])[MASK]  # padding does not count
    shares = np.bincount(np.argmax(logits, axis=-1), minlength=3) / len(logits)
    expected = 3 * np.sum(shares * np.mean(jax.nn.softmax(logits), axis=0))
    assert_close(out.encoder_shown["balance_loss"][0], expected, 1e-6)


class Spy(eb.nn.AbstractLinear):
    """Keeps what it is given."""

    seen: list = eqx.field(static=True)

    def __call__(self, x):
        self.seen.append(x)
        return x[..., :3]


def test_its_gradient_reaches_the_router(model):
    """By the balance loss alone, which falls along it."""

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def balance(model):
        return loss_of(model, 1.0) - loss_of(model, 0.0)

    before, grads = balance(model)
    assert all(np.any(x.router.weight != 0) for x in blocks(grads.model))
    after, _ = balance(eqx.apply_updates(model, jax.tree.map(lambda g: -1e-3 * g, grads)))
    assert after < before


def test_shapes_are_checked(model):
    wrong = eb.nn.Linear(31, 48, init_std=1.0, key=jax.random.key(1))
    wrong_model = eqx.tree_at(
        lambda m: m.model.decoder.layers[1].feed_forward.experts[2].fc2, model, wrong
    )
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(inner|d_in)=40"):
        wrong_model(IDS, MASK)
