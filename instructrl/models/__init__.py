"""Policy, value function and reward model on top of any transformers causal language model."""
