"""Hugging Face's names, and what to write here: the tables of the README, and the answers
to whoever uses a name of Hugging Face's that does not exist here."""

import re
from typing import NamedTuple


class Row(NamedTuple):
    """What to write here for something of Hugging Face's, both in Markdown."""

    theirs: str
    ours: str


FLAX = (
    Row("`FlaxBartModel`, `FlaxBartFor…`", "`BartModel`, `BartFor…`"),
    Row(
        "`FlaxBart….from_pretrained(path)`, `from_pt=True` or not",
        "`Bart….from_pretrained(path)`, whatever the format",
    ),
    Row(
        "`dtype=jnp.bfloat16`, then `model.to_bf16(model.params)`",
        '`from_pretrained(path, dtype="bfloat16")`',
    ),
    Row(
        "`model.params`, a dict",
        "the model itself; `eqx.filter(model, eqx.is_inexact_array)`",
    ),
    Row(
        '`params["model"]["encoder"]["layers"]["0"]["fc1"]["kernel"]`',
        "`model.model.encoder.layers[0].fc1.weight`, `[in, out]` as well",
    ),
    Row("`model(ids, mask, params=params)`", "`model(ids, mask)`"),
    Row(
        "`model(…, train=True, dropout_rng=key)`",
        "`eqx.nn.inference_mode(model, False)(…, key=key)`",
    ),
    Row("`model.encode(ids, mask)`", "the same"),
    Row(
        "`model.init_cache(batch_size, max_length, encoded)`",
        "`model.init_cache(encoded, max_length, mask)`",
    ),
    Row(
        "`model.decode(ids, encoded, mask, past_key_values=cache, decoder_position_ids=p, "
        "decoder_attention_mask=m)`, then `out.past_key_values`",
        "`out, cache = model.decode(ids, cache)`; masks and positions only where they are "
        "unusual, and of the new tokens alone",
    ),
    Row(
        "`model.decode(ids, encoded, mask)`",
        "`model.decode(ids, encoder_outputs=encoded, encoder_attention_mask=mask)`",
    ),
    Row(
        "`model.generate(ids, attention_mask=mask, prng_key=key).sequences`",
        "`model.generate(ids, mask, key=key).sequences`",
    ),
    Row(
        "`tokenizer.batch_decode(generated.sequences, skip_special_tokens=True)`",
        "`generated.decode(tokenizer)`, or `generated.sequences.tolist()`",
    ),
    Row("`model.save_pretrained(path)`, msgpack", "the same, safetensors"),
    Row(
        "`jax.jit`, `jax.pmap` with `params` as an argument",
        "`eqx.filter_jit` with the model as an argument",
    ),
)

PYTORCH = (
    Row(
        "`model.eval()`, `model.train()`, `model.training`",
        "`eqx.nn.inference_mode(model)`, `eqx.nn.inference_mode(model, False)`",
    ),
    Row(
        "`model.forward(…)`, `return_dict`, `head_mask`, `decoder_head_mask`, "
        "`cross_attn_head_mask`, `token_type_ids`",
        "`model(…)`, without these: BART has no token types",
    ),
    Row(
        "`model(input_ids=…, labels=labels).loss`",
        "`eb.seq2seq_loss(model, ids, mask, labels, key=key).mean`",
    ),
    Row(
        "the same of a classifier; `start_positions`, `end_positions`",
        "`eb.classification_loss(model, …)`, `eb.question_answering_loss(model, …)`",
    ),
    Row(
        "`loss.backward()`, `optimizer.step()`, `model.zero_grad()`",
        "`jax.value_and_grad`, `optim.update`; see above",
    ),
    Row(
        "gradient accumulation, `num_items_in_batch`",
        "add the `LossSum` of each micro-batch, and their gradients; see above",
    ),
    Row(
        "`group_by_length`, `DataCollatorForSeq2Seq`",
        "`eb.pack(examples, …)`, which pads hardly at all; `eb.length_grouped`, `eb.pad`",
    ),
    Row(
        '`torch.autocast("cuda", torch.bfloat16)`',
        '`eb.cast(model, "bfloat16")` in the loss',
    ),
    Row("`model.gradient_checkpointing_enable()`", "`eb.gradient_checkpointing(model)`"),
    Row(
        "`parameter.requires_grad = False`, `model.requires_grad_(False)`",
        "`eb.trainable(model, freeze_encoder=True)`, or a filter of your own",
    ),
    Row(
        "`get_peft_model(model, LoraConfig(r=8))`, `model.add_adapter(…)`",
        "`eb.lora(model, 8, key=key)`",
    ),
    Row(
        "`model.get_encoder()(ids, mask)`, `model.get_decoder()`",
        "`model.encode(ids, mask)`, `model.decode(…)`",
    ),
    Row(
        "`model.get_input_embeddings()`, `model.get_output_embeddings()`",
        "`model.model.shared`, `model.projection`; `eqx.tree_at` puts others in",
    ),
    Row(
        "`model(decoder_input_ids=…, past_key_values=cache, use_cache=True)`, "
        "`cache_position`; `model.generate(…, past_key_values=cache)`",
        "`out, cache = model.decode(ids, cache)`, after `model.init_cache`; "
        "`model.generate(decoder_input_ids=ids, cache=out.cache)`, after one with "
        "`output_cache=True`",
    ),
    Row(
        "`model.generate(ids, attention_mask=mask, num_beams=4)`, `inputs=ids`",
        "`model.generate(ids, mask, num_beams=4)`, `input_ids=ids`",
    ),
    Row("`torch.manual_seed(0)`, then `do_sample=True`", "`key=jax.random.key(0)`"),
    Row("`model.generate(…, streamer=streamer)`", "`for tokens in model.stream(…)`"),
    Row(
        "`logits_processor=[…]`, `logits_warper`",
        "`logits_processors=[…]`, each an `eb.LogitsProcessor`",
    ),
    Row(
        "`stopping_criteria=[…]`, `assistant_model`, `synced_gpus`, `custom_generate`",
        "a loop of your own, with `model.init_generation` and `model.step`",
    ),
    Row("`prefix_allowed_tokens_fn`", "`eb.PrefixConstrainedLogitsProcessor(sequences)`"),
    Row(
        "`out.cross_attentions[step][layer]` of `generate`",
        "`out.cross_attentions[layer][:, :, step]`",
    ),
    Row(
        "`model.resize_token_embeddings(n)`",
        "`model = model.resize_token_embeddings(n, key=key)`",
    ),
    Row(
        "`model.generation_config.num_beams = 4`",
        "`model = model.with_generation_config(num_beams=4)`",
    ),
    Row(
        '`model.to("cuda")`, `.cuda()`, `.cpu()`, `.device`, `device_map="auto"`',
        "JAX's default device; `eqx.filter_shard(model, jax.devices()[0])`",
    ),
    Row(
        "`model.half()`, `.bfloat16()`, `.float()`, `.double()`, `torch_dtype`",
        '`eb.cast(model, "float16")`, `from_pretrained(path, dtype="float16")`',
    ),
    Row(
        "`model.state_dict()`, `model.parameters()`, `model.named_parameters()`, "
        "`model.load_state_dict(…)`",
        "the model itself, by the same names: it is a tree of arrays, never changed in "
        "place. **The weights of linear maps are `[in, out]`**, PyTorch's transposed, and "
        "square ones do not tell",
    ),
    Row(
        "`model.push_to_hub(name)`",
        "`model.save_pretrained(path)`, then `huggingface_hub.upload_folder`",
    ),
    Row(
        "`quantization_config=BitsAndBytesConfig(load_in_8bit=True)`",
        '`from_pretrained(path, quantize="int8")`, or `eb.quantize(model)`',
    ),
    Row(
        "`low_cpu_mem_usage`, `attn_implementation`, "
        "`model.compile()`, `model.tie_weights()`",
        "nothing: memory is spared, and ties are kept, in any case",
    ),
)


def answer(name: str, *, is_attribute: bool = False) -> str:
    """What to write here for a name of Hugging Face's, as the end of a message; nothing if
    that is not known."""
    word = rf"(?<![.\w]){re.escape(name)}"
    patterns = [rf"\.{re.escape(name)}\b"] if is_attribute else [f"{word}=", rf"{word}\b"]
    for pattern in patterns:
        found = [
            (match.start(), row)
            for row in (*PYTORCH, *FLAX)
            if (match := re.search(pattern, row.theirs))
            and not re.search(pattern, row.ours)
        ]
        if found:
            _, (theirs, ours) = min(found)
            return f". For Hugging Face's {theirs}, write {ours}."
    return ""
