"""From prompts to experience: sampling, and everything PPO needs to know about a sample."""
