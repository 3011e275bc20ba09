"""Where HF's own tests of BART and of generation are, asked of ours.

The suites are transformers' `test_modeling_common.py`, `models/bart/test_modeling_bart.py`,
`generation/test_utils.py`, `generation/test_logits_process.py` and, before version 5,
`test_modeling_flax_common.py`, `models/bart/test_modeling_flax_bart.py`,
`generation/test_flax_utils.py` and `generation/test_flax_logits_process.py`.

A test of ours that asks the same has the name of HF's in its docstring: most are in
`models/test_hf_modeling.py`, `generation/test_hf_generation.py` and
`generation/logits_process/test_hf_logits_process.py`. Here are the others: those that a
test asks as part of more, and those that there is nothing to ask of.
"""

import ast
import collections
import itertools
import pathlib
import re


TESTS = pathlib.Path(__file__).parent

PART_OF_MORE = {
    "test_config.py::test_defaults_are_those_of_hf": "test_config",
    "checkpoint/test_pretrained.py::test_to_hf_and_back": """
        test_can_use_safetensors test_load_save_without_tied_weights""",
    "checkpoint/test_pretrained.py::test_tied_embeddings_under_any_name": """
        test_model_weights_reload_no_missing_tied_weights""",
    "checkpoint/test_pretrained.py::test_a_trunk_and_heads_for_one_another": """
        test_save_load_fast_init_from_base test_save_load_fast_init_to_base
        test_save_load_from_base test_save_load_to_base test_correct_missing_keys""",
    "checkpoint/test_pretrained.py::test_shards": """
        test_checkpoint_sharding_local test_checkpoint_sharding_from_hub""",
    "checkpoint/test_pretrained.py::test_resize_token_embeddings": """
        test_resize_tokens_embeddings test_resize_tokens_embeddings_more
        test_resize_embeddings_untied""",
    "checkpoint/test_pretrained.py::test_resize_position_embeddings": """
        test_resize_position_vector_embeddings""",
    "checkpoint/test_pretrained.py::test_another_head_than_the_config": """
        test_load_with_mismatched_shapes
        test_mismatched_shapes_have_properly_initialized_weights""",
    "checkpoint/test_pretrained.py::test_another_vocabulary_than_the_config": """
        test_matched_shapes_have_loaded_weights_when_some_mismatched_shapes_exist""",
    "models/test_seq2seq.py::test_shift_tokens_right": "test_shift_tokens_right",
    "models/test_parity.py::test_inside_vmap_grad_and_checkpoint": """
        test_torch_compile_for_training""",
    "nn/test_checks.py::test_programs_without_callbacks_are_exported": """
        test_torch_export test_torchscript_simple test_torchscript_output_attentions
        test_torchscript_output_hidden_state""",
    "nn/test_checks.py::test_on_devices": "test_multi_gpu_data_parallel_forward",
    "training/test_losses.py::test_classification": "test_problem_types",
    "training/test_losses.py::test_sums_add_up_over_batches": """
        test_causal_lm_can_accept_kwargs""",
    "training/test_parameters.py::test_checkpointing_keeps_less": """
        test_gradient_checkpointing_enable_disable
        test_gradient_checkpointing_backward_compatibility""",
    "generation/test_mixin.py::test_greedy_search": "test_greedy_generate_pt_fx",
    "generation/test_mixin.py::test_embeddings_instead_of_ids": """
        test_generate_from_inputs_embeds test_encoder_decoder_generate_with_inputs_embeds
        test_generate_from_inputs_embeds_with_bos_token_id_is_none
        test_max_length_if_input_embeds test_min_length_if_input_embeds""",
    "generation/test_mixin.py::test_generating_is_one_program": """
        test_generate_compile_model_forward test_generate_compile_fullgraph_tiny""",
    "generation/test_strategies.py::test_a_row_stands_for_itself": """
        test_left_padding_compatibility test_greedy_generate_attn_mask
        test_sample_generate_attn_mask test_beam_search_generate_attn_mask""",
    "generation/test_strategies.py::test_results_on_request": """
        test_transition_scores_greedy_search test_transition_scores_greedy_search_normalized
        test_transition_scores_beam_search_encoder_decoder
        test_transition_scores_beam_search_encoder_decoder_with_eos
        test_transition_scores_early_stopping""",
    "generation/test_diverse_beam_search.py::test_scores_are_sums_along_the_beams": """
        test_transition_scores_group_beam_search_encoder_decoder""",
    "generation/test_diverse_beam_search.py::test_answers_are_those_that_hf_has_given": """
        test_diverse_beam_search""",
    "generation/test_strategies.py::test_encoder_outputs_instead_of_the_source": """
        test_encoder_decoder_generate_attention_mask
        test_generate_encoder_outputs_attention_mask""",
    "generation/test_fuzz.py::test_generate_under_random_settings": """
        test_decoder_attention_mask""",
}

NOTHING_TO_ASK = {
    "the weights are on the hub; generation/test_mixin.py reads others that are real": """
        test_inference_no_head test_base_mask_filling test_large_mask_filling
        test_mnli_inference test_xsum_summarization_same_as_fairseq
        test_xsum_config_generation_params test_cnn_summarization_same_as_fairseq
        test_xsum_1_1_generation test_xsum_1_1_batch_generation test_encoder_equiv
        test_model_from_pretrained test_summarization_fast
        test_beam_search_example_integration""",
    "the tokenizer is transformers' own": "test_tokenization",
    "one attention, and one kind of cache": """
        test_flash_attn_2_inference_equivalence
        test_flash_attn_2_inference_equivalence_right_padding
        test_eager_matches_sdpa_inference test_sdpa_can_dispatch_on_flash
        test_sdpa_can_compile_dynamic test_eager_matches_sdpa_generate
        test_eager_matches_fa2_generate test_custom_4d_attention_mask
        test_flex_attention_with_grads test_generate_with_static_cache
        test_generate_from_inputs_embeds_with_static_cache test_generate_with_quant_cache
        test_offloaded_cache_implementation""",
    "no masks of heads, which are gone from transformers 5 too": """
        test_headmasking test_generate_with_head_masking test_head_pruning
        test_head_pruning_save_load_from_pretrained
        test_head_pruning_save_load_from_config_init test_head_pruning_integration""",
    "arrays lie where JAX's sharding puts them": """
        test_model_parallelization test_model_parallel_equal_results test_disk_offload_bin
        test_disk_offload_safetensors test_cpu_offload test_model_parallelism
        test_model_parallel_beam_search test_generate_with_static_cache_multi_gpu
        test_init_static_cache_multi_gpu test_resize_tokens_embeddings_with_deepspeed
        test_resize_embeddings_untied_with_deepspeed""",
    "a tensor is always read when it is wanted, and weights are drawn in __init__": """
        test_save_load_low_cpu_mem_usage test_save_load_low_cpu_mem_usage_checkpoints
        test_save_load_low_cpu_mem_usage_no_safetensors test_no_automatic_init
        test_from_pretrained_with_no_automatic_init test_from_pretrained_no_checkpoint""",
    "PyTorch's, or of HF's own classes": """
        test_torch_fx test_torch_fx_output_loss test_retain_grad_hidden_states_attentions
        test_keep_in_fp32_modules test_save_load_keys_to_ignore_on_save test_dummy_inputs
        test_feed_forward_chunking test_model_is_small test_naming_convention
        test_generation_tester_mixin_inheritance
        test_model_kwarg_encoder_signature_filtering
        test_prepare_inputs_for_generation_decoder_llm test_default_max_length_warning
        test_prepare_inputs_for_generation_encoder_decoder_llm
        test_peft_gradient_checkpointing_enable_disable""",
    "`decode` gives the logits of the tokens that it is given": """
        test_forward_with_logits_to_keep test_generate_methods_with_logits_to_keep""",
    "no second model that drafts": """
        test_assisted_decoding_matches_greedy_search test_assisted_decoding_sample
        test_assisted_decoding_with_logits_to_keep test_speculative_sampling
        test_prompt_lookup_decoding_matches_greedy_search
        test_prompt_lookup_decoding_stops_at_eos test_validate_assistant
        test_speculative_sampling_target_distribution
        test_speculative_decoding_equals_regular_decoding
        test_length_warning_assisted_generation test_default_assisted_generation
        test_generated_length_assisted_generation test_assisted_generation_early_exit
        test_model_kwarg_assisted_decoding_decoder_only
        test_model_kwarg_assisted_decoding_encoder_decoder
        test_assisted_decoding_encoder_decoder_shared_encoder""",
    "strategies that are refused by name, see test_strategies_that_there_are_not": """
        test_constrained_beam_search_generate_dict_output test_constrained_beam_search
        test_constrained_beam_search_mixed test_constrained_beam_search_mixed_mixin
        test_constrained_beam_search_example_translation_mixin
        test_constrained_beam_search_example_integration
        test_contrastive_generate_dict_outputs_use_cache
        test_contrastive_generate_low_memory test_contrastive_search_batched
        test_contrastive_search_bart test_eos_token_id_int_and_list_contrastive_search
        test_padding_input_contrastive_search_gpt2 test_padding_input_contrastive_search_t5
        test_synthid_text_watermark_generation_mean_expected_bias
        test_classifier_free_guidance test_top_h_dist_warper""",
    "no criteria for stopping: `step` is for a loop of one's own": """
        test_custom_stopping_criteria test_custom_stopping_criteria_overload_error
        test_per_row_stopping_criteria test_beam_search_advanced_stopping_criteria""",
    "arguments of penalties that no setting of generation reaches": """
        test_repetition_penalty_dist_process_exclusion_no_new_input_ids
        test_repetition_penalty_dist_process_exclusion_with_new_input_ids
        test_repetition_penalty_normalized test_repetition_penalty_normalized_reward
        test_repetition_penalty_normalized_3d_scores
        test_encoder_repetition_penalty_normalized""",
    "BART reads text alone": """
        test_generate_non_nlp_input_ids_as_kwarg
        test_generate_input_values_as_encoder_kwarg""",
}


def docstrings():
    """The name of each test of ours, with its docstring."""
    for file in TESTS.rglob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{file.relative_to(TESTS).as_posix()}::{node.name}"
                yield name, ast.get_docstring(node) or ""


def test_each_of_hfs_tests_has_its_place():
    ours = dict(docstrings())
    assert not PART_OF_MORE.keys() - ours
    named = [re.findall(r"`(test_\w+)`", doc) for doc in ours.values() if "HF's `" in doc]
    listed = [text.split() for text in (PART_OF_MORE | NOTHING_TO_ASK).values()]
    count = collections.Counter(itertools.chain(*listed))
    assert [name for name in count if count[name] > 1] == []
    assert not count.keys() & {*itertools.chain(*named)}
