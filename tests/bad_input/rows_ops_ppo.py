"""Arguments of PPO's losses and of their settings."""

from op_row import OpRow

ROWS = [
    OpRow(
        what="mean that is in no table",
        call="aggregation.token_weights(MASK, 'mean')",
        message="aggregation: found 'mean', accepted are token_mean, sequence_mean_of_token_means, …",
    ),
    OpRow(
        what="fewer sequences than none",
        call="aggregation.token_weights(MASK, 'constant', num_sequences=-2)",
        message="num_sequences: found -2; accepted is a whole number >= 0, …",
    ),
    OpRow(
        what="constant of packed sequences that is not given",
        call="aggregation.token_weights(MASK[0], 'constant', cu_seqlens=torch.tensor([0, 1, 3]))",
        message="length: found None with cu_seqlens, accepted is a whole number",
    ),
    OpRow(
        what="negative clip range",
        call="PolicySettings(clip_high=-0.1)",
        message="clip_high: found -0.1, accepted is a number from 0 to inf",
    ),
    OpRow(
        what="clip range below a ratio of 0",
        call="PolicySettings(clip_low=1.5)",
        message="clip_low: found 1.5, accepted is a number from 0 to 1",
    ),
    OpRow(
        what="dual clip that bounds nothing",
        call="PolicySettings(dual_clip=1.0)",
        message="dual_clip: found 1.0, accepted is a finite number above 1",
    ),
    OpRow(
        what="dual clip of another loss",
        call="PolicySettings(surrogate='sapo', dual_clip=3.0)",
        message="dual_clip: found 3.0 with surrogate 'sapo', accepted is None, or surrogate 'clip'",
    ),
    OpRow(
        what="log ratio clamped to nothing",
        call="PolicySettings(log_ratio_clamp=0)",
        message="log_ratio_clamp: found 0, accepted is a finite number above 0",
    ),
    OpRow(
        what="clamp that is only switched on",
        call="PolicySettings(log_ratio_clamp=True)",
        message="log_ratio_clamp: found True, accepted is a number",
    ),
    OpRow(
        what="number that has no order",
        call="PolicySettings(clip_low=0.2j)",
        message="clip_low: found 0.2j, accepted is a number",
    ),
    OpRow(
        what="loss that is in no table",
        call="PolicySettings(surrogate='ppo')",
        message="surrogate: found 'ppo', accepted are clip, cispo, reinforce, sapo",
    ),
    OpRow(
        what="estimator that is in no table",
        call="KLSettings(estimator='kl')",
        message="estimator: found 'kl', accepted are k1, k2, k3, abs",
    ),
    OpRow(
        what="importance that is in no table",
        call="KLSettings(importance=True)",
        message="importance: found True, accepted are none, constant, full, score",
    ),
    OpRow(
        what="settings of a part in place of the whole",
        call="ppo.ppo_loss(X, X, X, X, X, X, MASK, settings=PolicySettings())",
        message="settings: found PolicySettings, accepted is PPOSettings",
    ),
    OpRow(
        what="negative weight",
        call="ppo.clipped_policy_loss(X, X, X, MASK, weights=X - 1)",
        message="weights: found one that is negative, infinite or NaN where the mask is True, accepted are finite …",
    ),
    OpRow(
        what="weight for each sequence",
        call="likelihood.linear_nll_loss(HIDDEN, WEIGHT, TOKENS, MASK, weights=X[:, 0])",
        message="weights: found shape (2,), accepted is (2, 3), as mask has it",
    ),
    OpRow(
        what="ratio of sequences without sequences",
        call="ppo.clipped_policy_loss(X[0], X[0], X[0], MASK[0], settings=PolicySettings(ratio='sequence'))",
        message="logprobs: found shape (3,) with ratio 'sequence', accepted is [B, T], a row a sequence",
    ),
    OpRow(
        what="mask of other whole numbers",
        call="ppo.clipped_policy_loss(X, X, X, TOKENS + 2)",
        message="mask: found a number other than 0 and 1, accepted are bool (True where an element counts), 0 and 1",
    ),
    OpRow(
        what="advantages for each position",
        call="ppo.clipped_policy_loss(X, X, X[0], MASK)",
        message="advantages: found shape (3,), accepted is (2, 3), as logprobs has it, or (2,) or (2, 1) …",
    ),
    OpRow(
        what="fraction of a token",
        call="ppo.clipped_value_loss(X, X, X, MASK, num_tokens=6.5)",
        message="num_tokens: found 6.5 of type float; accepted is a whole number >= 0, …",
    ),
    OpRow(
        what="fewer tokens than none",
        call="ppo.clipped_value_loss(X, X, X, MASK, num_tokens=-1)",
        message="num_tokens: found -1; accepted is a whole number >= 0, …",
    ),
    OpRow(
        what="count for each sequence",
        call="ppo.clipped_value_loss(X, X, X, MASK, num_tokens=MASK.sum(1))",
        message="num_tokens: found a tensor of shape (2,), dtype torch.int64, device cpu; accepted is a whole number …",
    ),
    OpRow(
        what="clip range that is NaN",
        call="ValueSettings(cliprange=NAN)",
        message="cliprange: found nan, accepted is a number from 0 to inf",
    ),
    OpRow(
        what="KL without a reference",
        call="ppo.ppo_loss(X, X, X, X, X, X, MASK, settings=PPOSettings(kl=KLSettings(coef=0.1)))",
        message="ref_logprobs: found None with a KL coefficient of 0.1, accepted is a tensor, or a coefficient of 0",
    ),
    OpRow(
        what="no returns",
        call="ppo.ppo_loss(X, X, X, X, X, None, MASK)",
        message="returns: found NoneType, accepted is a tensor",
    ),
    OpRow(
        what="old log-probabilities of another shape",
        call="ppo.linear_ppo_loss(HIDDEN, WEIGHT, TOKENS, X[0], X, X, X, X, MASK)",
        message="old_logprobs: found shape (3,), accepted is (2, 3), as advantages has it",
    ),
]
