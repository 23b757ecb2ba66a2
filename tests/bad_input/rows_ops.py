"""Arguments of the ops. `instructrl.ops` raises ValueError or TypeError, in the caller's process."""

import rows_ops_logits
import rows_ops_ppo
from op_row import OpRow

ROWS = [
    OpRow(
        what="scores of three dimensions",
        call="ranking.pairwise_ranking_loss(X[..., None], PREFERRED)",
        message="scores: found shape (2, 3, 1), accepted is [P, K]",
    ),
    OpRow(
        what="whole numbers for scores",
        call="ranking.pairwise_ranking_loss(TOKENS, PREFERRED)",
        message="scores: found dtype torch.int64, accepted are float32, bfloat16, float16, float64",
    ),
    OpRow(
        what="list for a tensor",
        call="ranking.pairwise_ranking_loss([[0.0, 1.0]], PREFERRED)",
        message="scores: found list, accepted is a tensor",
    ),
    OpRow(
        what="ranks for preferences",
        call="ranking.pairwise_ranking_loss(X, TOKENS)",
        message="preferred: found shape (2, 3), accepted is (2, 3, 3), as scores has it",
    ),
    OpRow(
        what="preferences of another K",
        call="ranking.pairwise_ranking_loss(X[:, :2], PREFERRED)",
        message="preferred: found shape (2, 3, 3), accepted is (2, 2, 2), as scores has it",
    ),
    OpRow(
        what="two devices",
        call='ranking.pairwise_ranking_loss(X, PREFERRED.to("meta"))',
        message="preferred: found device meta, accepted is cpu, where scores is",
    ),
    OpRow(
        what="ranks of one prompt",
        call="ranking.preferred_from_ranks(X[0])",
        message="ranks: found shape (3,), accepted is [P, K]",
    ),
    OpRow(
        what="complex ranks",
        call="ranking.preferred_from_ranks(X.to(torch.complex64))",
        message="ranks: found dtype torch.complex64, accepted are integers and floating-point numbers",
    ),
    OpRow(
        what="token id above the vocabulary",
        call="logprobs.token_logprobs(LOGITS, TOKENS + V, mask=MASK)",
        message="tokens: found an id out of range where the mask is True, accepted are ids from 0 to 6",
    ),
    OpRow(
        what="token id below 0 where it counts",
        call="logprobs.token_logprobs(LOGITS, TOKENS - 1)",
        message="tokens: found an id out of range where the mask is True, accepted are ids from 0 to 6",
    ),
    OpRow(
        what="mask upside down: padding counts",
        call="logprobs.token_logprobs(LOGITS, PADDED, mask=~COUNTS)",
        message="tokens: found an id out of range where the mask is True, accepted are ids from 0 to 6",
    ),
    OpRow(
        what="float for token ids",
        call="logprobs.token_logprobs(LOGITS, X)",
        message="tokens: found dtype torch.float32, accepted are int64, int32",
    ),
    OpRow(
        what="tokens of another shape",
        call="logprobs.token_logprobs(LOGITS, TOKENS[0])",
        message="tokens: found shape (3,), accepted is (2, 3), as logits without its last dimension has it",
    ),
    OpRow(
        what="mask of 0 and 0.5",
        call="logprobs.token_logprobs(LOGITS, TOKENS, mask=X + 0.5)",
        message="mask: found a number other than 0 and 1, accepted are bool (True where an element counts), 0 and 1",
    ),
    OpRow(
        what="mask of 0 and -inf",
        call="logprobs.token_logprobs(LOGITS, TOKENS, mask=X - INF)",
        message="mask: found a number other than 0 and 1, accepted are bool (True where an element counts), 0 and 1",
    ),
    OpRow(
        what="mask of another shape",
        call="logprobs.token_logprobs(LOGITS, TOKENS, mask=MASK[:, :2])",
        message="mask: found shape (2, 2), accepted is (2, 3), as tokens has it",
    ),
    OpRow(
        what="temperature 0",
        call="logprobs.token_logprobs(LOGITS, TOKENS, temperature=0.0)",
        message="temperature: found 0.0, accepted is a finite number above 0",
    ),
    OpRow(
        what="temperature that is a text",
        call='logprobs.token_logprobs(LOGITS, TOKENS, temperature="1")',
        message="temperature: found '1', accepted is a number",
    ),
    OpRow(
        what="logits of whole numbers",
        call="logprobs.token_logprobs(LOGITS.long(), TOKENS)",
        message="logits: found dtype torch.int64, accepted are float32, bfloat16, float16, float64",
    ),
    OpRow(
        what="gradient in place over shared memory",
        call="logprobs.token_logprobs(LOGITS[:1].expand(B, T, V), TOKENS, inplace_backward=True)",
        message=(
            "logits: found shape (2, 3, 7) with strides (0, 7, 1), accepted is a tensor whose elements share no memory"
        ),
    ),
    OpRow(
        what="weight of another width",
        call="logprobs.linear_token_logprobs(HIDDEN, WEIGHT[:, :4], TOKENS)",
        message="weight: found shape (7, 4), accepted is (7, 5), as hidden (last dimension) has it",
    ),
    OpRow(
        what="weight the other way round",
        call="logprobs.linear_token_logprobs(HIDDEN, WEIGHT.T, TOKENS)",
        message="weight: found shape (5, 7), accepted is (5, 5), as hidden (last dimension) has it",
    ),
    OpRow(
        what="no weight",
        call="logprobs.linear_token_logprobs(HIDDEN, None, TOKENS)",
        message="weight: found NoneType, accepted is a tensor",
    ),
    OpRow(
        what="bias of another vocabulary",
        call="logprobs.linear_token_logprobs(HIDDEN, WEIGHT, TOKENS, bias=torch.zeros(V - 1))",
        message="bias: found shape (6,), accepted is (7,), as weight (first dimension) has it",
    ),
    OpRow(
        what="workspace smaller than a row",
        call="logprobs.linear_token_logprobs(HIDDEN, WEIGHT, TOKENS, max_workspace_bytes=10)",
        message="max_workspace_bytes: found 10, accepted is at least 112 for V = 7",
    ),
    OpRow(
        what="workspace of half a byte",
        call="logprobs.linear_token_logprobs(HIDDEN, WEIGHT, TOKENS, max_workspace_bytes=112.5)",
        message="max_workspace_bytes: found 112.5 of type float, accepted is a whole number",
    ),
    OpRow(
        what="token id above the rows of the weight",
        call="likelihood.linear_nll_loss(HIDDEN, WEIGHT, TOKENS + V, MASK)",
        message="tokens: found an id out of range where the mask is True, accepted are ids from 0 to 6",
    ),
    OpRow(
        what="whole numbers for uniforms",
        call="sampling.sample_tokens(X, TOKENS[:, 0])",
        message="uniforms: found dtype torch.int64, accepted are float32, float64",
    ),
    OpRow(
        what="uniform number of 1",
        call="sampling.sample_tokens(X, torch.ones(B))",
        message="uniforms: found a number outside, accepted are numbers in [0, 1)",
    ),
    OpRow(
        what="uniform number below 0",
        call="sampling.sample_tokens(X, torch.full((B,), -0.1))",
        message="uniforms: found a number outside, accepted are numbers in [0, 1)",
    ),
    OpRow(
        what="vocabulary of 0 tokens",
        call="sampling.sample_tokens(X[:, :0], X[:, 0])",
        message="logits: found a vocabulary of 0 tokens, accepted is at least 1",
    ),
    *rows_ops_logits.ROWS,
    *rows_ops_ppo.ROWS,
]
