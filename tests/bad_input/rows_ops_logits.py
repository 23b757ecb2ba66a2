"""Arguments about logits: their settings, ids that are allowed, given ids."""

from op_row import OpRow

ROWS = [
    OpRow(
        what="scale of 0",
        call="LogitSettings(scale=0.0)",
        message="scale: found 0.0, accepted is a finite number above 0",
    ),
    OpRow(
        what="infinite cap for none",
        call="LogitSettings(softcap=INF)",
        message="softcap: found inf, accepted is a finite number above 0",
    ),
    OpRow(
        what="cap that is a text",
        call="LogitSettings(softcap='30')",
        message="softcap: found '30', accepted is a number",
    ),
    OpRow(
        what="cap in place of settings",
        call="logprobs.token_logprobs(LOGITS, TOKENS, logit_settings=30.0)",
        message="logit_settings: found float, accepted is LogitSettings",
    ),
    OpRow(
        what="allowed ids of another vocabulary",
        call="logprobs.token_logprobs(LOGITS, TOKENS, allowed=torch.ones(V - 1, dtype=torch.bool))",
        message="allowed: found shape (6,), accepted is (7,), as logits (last dimension) has it",
    ),
    OpRow(
        what="ids in place of a mask of them",
        call="logprobs.token_logprobs(LOGITS, TOKENS, allowed=torch.arange(V))",
        message="allowed: found a number other than 0 and 1, accepted are bool (True where an element counts), 0 and 1",
    ),
    OpRow(
        what="nothing that is allowed",
        call="logprobs.token_logprobs(LOGITS, TOKENS, allowed=torch.zeros(V, dtype=torch.bool))",
        message="allowed: found a row where none is allowed, accepted are rows with at least one",
    ),
    OpRow(
        what="a row where nothing may be sampled",
        call="sampling.sample_tokens(X, X[:, 0], allowed=COUNTS & MASK[:, :1] & (torch.arange(B)[:, None] > 0))",
        message="allowed: found a row where none is allowed, accepted are rows with at least one",
    ),
    OpRow(
        what="allowed ids of another batch",
        call="sampling.sample_tokens(X, X[:, 0], allowed=MASK[:1])",
        message="allowed: found shape (1, 3), accepted is (2, 3), as logits has it",
    ),
    OpRow(
        what="one id a row for several",
        call="candidates.candidate_logprobs(LOGITS, TOKENS)",
        message="ids: found shape (2, 3), accepted is (2, 3, K) with K of at least 1, with the rows of logits",
    ),
    OpRow(
        what="no ids",
        call="candidates.linear_candidate_logprobs(HIDDEN, WEIGHT, TOKENS[..., None][..., :0])",
        message="ids: found shape (2, 3, 0), accepted is (2, 3, K) with K of at least 1, with the rows of hidden",
    ),
    OpRow(
        what="given id above the vocabulary",
        call="candidates.candidate_logprobs(LOGITS, TOKENS[..., None] + V)",
        message="ids: found an id out of range where the mask is True, accepted are ids from 0 to 6",
    ),
    OpRow(
        what="statistics of an id above the vocabulary",
        call="statistics.token_statistics(LOGITS, TOKENS + V)",
        message="tokens: found an id out of range where the mask is True, accepted are ids from 0 to 6",
    ),
    OpRow(
        what="fractions of ids as bounds",
        call="vocab_parallel.VocabShards(bounds=(0, 2.5))",
        message="bounds: found (0, 2.5), accepted is a tuple of whole numbers",
    ),
    OpRow(
        what="ranges of a vocabulary that fall",
        call="vocab_parallel.VocabShards(bounds=(0, 5, 3))",
        message="bounds: found (0, 5, 3), accepted are bounds that rise from 0 to the size of the vocabulary",
    ),
    OpRow(
        what="no ranges of a vocabulary",
        call="vocab_parallel.token_logprobs(LOGITS, TOKENS, shards=None)",
        message="shards: found NoneType, accepted is VocabShards",
    ),
]
