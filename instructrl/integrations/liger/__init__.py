"""Liger: its losses from hidden states, of GRPO and its relatives and of preferences.

    from instructrl.integrations import liger
    liger.install()

Liger's Triton kernels are left alone: a machine without a GPU has nothing to hold ours to.
"""

from instructrl.integrations.adapter import Adapter, Replacement
from instructrl.integrations.liger import grpo, heads, preferences

ADAPTER = Adapter(
    host="liger",
    distribution="liger-kernel",
    package="liger_kernel",
    tried=("0.8.5",),
    replacements=(
        Replacement(
            name="liger_kernel.chunked_loss.grpo_loss:LigerFusedLinearGRPOFunction",
            signature="(ctx, _input, weight, selected_token_ids, attention_mask, advantages, bias=None, "
            "ref_per_token_logps=None, old_per_token_logps=None, ref_input=None, ref_weight=None, "
            "ref_bias=None, beta=0.04, epsilon_low=0.2, epsilon_high=0.2, loss_type='dapo', "
            "max_completion_length=None, importance_sampling_level='token', sapo_temperature_pos=1.0, "
            "sapo_temperature_neg=1.05, temperature=1.0, compiled=True, use_ref_model=True, chunk_size=1, "
            "vllm_is_ratio=None, delta=None, use_bias_correction_kl=False, vespo_k_pos=2.0, "
            "vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0, num_items_in_batch=None)",
            sources=("5ff069e28d34",),
            stand_in=grpo.grpo_of,
            examples=grpo.calls,
            call=grpo.applied,
            described="forward",
        ),
        Replacement(
            name="liger_kernel.chunked_loss.functional:liger_fused_linear_grpo",
            signature="(ctx, _input, weight, selected_token_ids, attention_mask, advantages, bias=None, "
            "ref_per_token_logps=None, old_per_token_logps=None, ref_input=None, ref_weight=None, "
            "ref_bias=None, beta=0.04, epsilon_low=0.2, epsilon_high=0.2, loss_type='dapo', "
            "max_completion_length=None, importance_sampling_level='token', sapo_temperature_pos=1.0, "
            "sapo_temperature_neg=1.05, temperature=1.0, compiled=True, use_ref_model=True, chunk_size=1, "
            "vllm_is_ratio=None, delta=None, use_bias_correction_kl=False, vespo_k_pos=2.0, "
            "vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0, num_items_in_batch=None)",
            sources=("5ff069e28d34",),
            stand_in=grpo.apply_of,
            examples=grpo.calls,
        ),
        Replacement(
            name="liger_kernel.chunked_loss.fused_linear_ppo:LigerFusedLinearPPOBase.chunk_forward",
            signature="(input_chunk, weight, selected_token_ids, bias=None, temperature=1.0)",
            sources=("323deac572d2",),
            stand_in=heads.chunk_forward_of,
            examples=heads.chunks,
        ),
        Replacement(
            name="liger_kernel.chunked_loss.fused_linear_preference:LigerFusedLinearPreferenceBase.forward",
            signature="(cls, ctx, _input, weight, target, bias=None, chunk_size=1, ignore_index=-100, alpha=1.0, "
            "beta=0.1, compute_nll_loss=True, nll_target=None, compiled=True, use_ref_model=False, "
            "ref_input=None, ref_weight=None, ref_bias=None, average_log_prob=True, **loss_kwargs)",
            sources=("f63d31b93651",),
            stand_in=preferences.forward_of,
            examples=preferences.calls,
            call=preferences.saved,
        ),
    ),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall
