"""How the coefficient of the per-token KL penalty follows the measured KL."""


def adaptive_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, num_episodes: int) -> float:
    """Proportional control of the KL coefficient (Ziegler et al. 2019, section 2.2).

    `coef * (1 + clip(kl / target - 1, -0.2, 0.2) * num_episodes / horizon)`, once per rollout batch.

    kl: nats per episode, measured with the coefficient in force. horizon: in episodes.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)
