"""PPO as TRL had it up to 0.11: `step(queries, responses, scores)` on a model with a value head. It needs no TRL.

    from instructrl.integrations.trl_legacy import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
    model = AutoModelForCausalLMWithValueHead.from_pretrained("folder")
    trainer = PPOTrainer(PPOConfig(batch_size=16, mini_batch_size=16), model, None, tokenizer)
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=32, do_sample=True)
    stats = trainer.step(queries, responses, scores)
    trainer.save_checkpoint("state")               # `load_checkpoint` goes on with it, to the same bits

docs/hosts/from_trl_ppo.md has what to change in a script, and what differs.
"""

from instructrl.integrations.trl_legacy.arguments import PPOConfig as PPOConfig
from instructrl.integrations.trl_legacy.trainer import PPOTrainer as PPOTrainer
from instructrl.integrations.trl_legacy.value_head import (
    AutoModelForCausalLMWithValueHead as AutoModelForCausalLMWithValueHead,
)
from instructrl.integrations.trl_legacy.value_head import create_reference_model as create_reference_model
