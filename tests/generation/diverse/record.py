"""Records the answers of HF's diverse beam search, in the files beside this one.

Transformers 4.56.2 is the last that has it; later versions load the same code from
`transformers-community/group-beam-search`. So, in a virtual environment of its own,

    pip install torch==2.13.0 transformers==4.56.2
    python tests/generation/diverse/record.py

`models.npz` holds the weights of small random models, in units of `UNIT`, one after
another; `cases.json` has their shapes, the configs, and what `generate` was asked and has
answered.
"""

import json
import pathlib

import numpy as np
import torch
import transformers


HERE = pathlib.Path(__file__).parent
UNIT = 1 / 64
NUM_MODELS = 3
# The answers to the first depend on rules that few others do: that a group which stops
# early in the last step takes nothing more; that what has ended counts as what may still be
# the best; that a group which has ended chooses padding.
SEEDS = (693, 38, 17, *(seed for seed in range(50) if seed not in (17, 38)))


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    models = [random_model(seed) for seed in range(NUM_MODELS)]
    tensors = [model.state_dict() for model in models]
    for name in [name for name in tensors[0] if "embed_tokens" in name]:
        for model in tensors:
            del model[name]  # the same as model.shared
    arrays = [
        np.concatenate([np.round(x.numpy().ravel() / UNIT) for x in model.values()])
        for model in tensors
    ]
    np.savez_compressed(HERE / "models.npz", *[x.astype(np.int8) for x in arrays])
    recorded = {
        "configs": [model.config.to_diff_dict() for model in models],
        "shapes": [{name: list(x.shape) for name, x in y.items()} for y in tensors],
        "cases": [random_case(seed, models) for seed in SEEDS],
    }
    lines = json.dumps(recorded).replace('{"model"', '\n{"model"')
    (HERE / "cases.json").write_text(lines + "\n")


def random_model(seed: int) -> transformers.BartForConditionalGeneration:
    """A model whose answers differ from input to input."""
    config = transformers.BartConfig(
        vocab_size=19 + seed,
        max_position_embeddings=20,
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_layers=1 + seed % 2,
        decoder_attention_heads=4,
        decoder_ffn_dim=14,
        tie_word_embeddings=False,
        forced_eos_token_id=None,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    model = transformers.BartForConditionalGeneration(config).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            values = centre + 0.3 * rng.normal(size=tuple(tensor.shape))
            values = np.clip(np.round(values / UNIT), -128, 127) * UNIT
            tensor.copy_(torch.from_numpy(values.astype(np.float32)))
        for part in (model.model.encoder, model.model.decoder):
            part.embed_tokens.weight.copy_(model.model.shared.weight)
    return model


def random_case(seed: int, models: list) -> dict:
    rng = np.random.default_rng([seed, 3])
    number = int(rng.integers(len(models)))
    model = models[number]
    source = rng.integers(3, model.config.vocab_size, (2, int(rng.integers(3, 9))))
    settings = random_settings(rng, model.config.vocab_size)
    mask = np.ones_like(source)
    if "encoder_no_repeat_ngram_size" not in settings:  # it counts padding
        mask[1, int(rng.integers(1, source.shape[1] + 1)) :] = 0
    with torch.no_grad():
        output = model.generate(
            torch.from_numpy(source),
            attention_mask=torch.from_numpy(mask),
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
    case = {
        "model": number,
        "source": source.tolist(),
        "mask": mask.tolist(),
        "settings": settings,
        "sequences": output.sequences.tolist(),
        "sequences_scores": output.sequences_scores.tolist(),
    }
    is_small = settings["num_beams"] * settings["max_new_tokens"] <= 16
    if settings["eos_token_id"] is None and is_small:  # no group ends before the end
        scores = torch.stack(output.scores).double().numpy()
        case["scores"] = np.round(np.maximum(scores, -1e9), 6).tolist()
    return case


def random_settings(rng: np.random.Generator, vocab_size: int) -> dict:
    groups, size = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    tokens = (3 + rng.permutation(vocab_size - 3)).tolist()
    num_ends = int(rng.integers(0, 4))
    return {
        "num_beams": groups * size,
        "num_beam_groups": groups,
        "diversity_penalty": float(rng.choice([0.1, 0.5, 1.0, 2.5, 10.0])),
        "num_return_sequences": int(rng.integers(1, groups * size + 1)),
        "length_penalty": float(rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0])),
        "early_stopping": [True, False, "never"][rng.integers(3)],
        "max_new_tokens": int(rng.choice([3, 4, 8, 15])),
        "eos_token_id": tokens[:num_ends] or None,
        "pad_token_id": int(rng.choice([1, tokens[5]])),
    } | random_processors(rng, tokens, num_ends)


def random_processors(rng: np.random.Generator, tokens: list[int], num_ends: int) -> dict:
    """Without `encoder_repetition_penalty`, which 4.56.2 applies to a few rows alone."""
    choices = {
        "sequence_bias": [[tokens[6:7], 1.5], [tokens[7:9], -2.0]],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [tokens[9:10], tokens[10:12]],
        "min_new_tokens": 3,
        "forced_bos_token_id": tokens[12],
        "forced_eos_token_id": tokens[0],
        "suppress_tokens": tokens[13:14],
        "begin_suppress_tokens": tokens[14:15],
        "renormalize_logits": True,
    }
    if num_ends and rng.random() < 0.1:  # alone: HF computes with infinities
        return {"exponential_decay_length_penalty": (2, 1.3)}
    count = int(rng.choice([0, 0, 1, 2, 3]))
    names = rng.choice(list(choices), count, replace=False).tolist()
    return {name: choices[name] for name in names}


if __name__ == "__main__":
    main()
