"""Options on the command line."""

from table import Row

ROWS = [
    Row(
        what="unknown command",
        options="trian",
        message="found the command 'trian', accepted are run, study, sft, rm, ppo, eval, judge, generate, merge, "
        "report, data, doctor",
    ),
    Row(
        what="host without an adapter",
        options="doctor --host tlr",
        message="instructrl doctor: argument --host: invalid choice: 'tlr' (choose from …)",
    ),
    Row(what="misspelt command", options="reprt", message="found the command 'reprt', did you mean 'report'?"),
    Row(
        what="unknown run", options="run minature", message="run: found the name 'minature', did you mean 'miniature'?"
    ),
    Row(
        what="unknown option",
        step="smoke",
        options="--nonsense 1",
        message=(
            "instructrl run smoke: found the unknown option --nonsense, accepted are those of instructrl run "
            "smoke --help"
        ),
    ),
    Row(
        what="misspelt option",
        step="smoke",
        options="--recipe.sft.epoch 1",
        message="instructrl run smoke: found the unknown option --recipe.sft.epoch, did you mean --recipe.sft.epochs?",
    ),
    Row(
        what="option without a value",
        step="smoke",
        options="--seed",
        message="--seed: found no value, accepted is a whole number",
    ),
    Row(
        what="option of the command without a value",
        options="run smoke --out",
        message="instructrl run smoke: argument --out: expected one argument",
    ),
    Row(
        what="two values",
        step="smoke",
        options="--seed 1 2",
        message="--seed: found '1', '2', accepted is a whole number",
    ),
    Row(
        what="argument behind no option",
        options="sft model",
        message="instructrl sft: found 'model' behind no option, accepted are --OPTION VALUE",
    ),
    Row(
        what="required options missing",
        options="sft --model model",
        message="--data, --out: missing, required",
    ),
    Row(
        what="required argument missing",
        options="report",
        message="instructrl report: the following arguments are required: folder",
    ),
    Row(
        what="word for a whole number",
        step="smoke",
        options="--seed one",
        message="--seed: found 'one', accepted is a whole number",
    ),
    Row(
        what="fraction for a whole number",
        step="smoke",
        options="--recipe.sft.epochs 1.5",
        message="--recipe.sft.epochs: found '1.5', accepted is a whole number",
    ),
    Row(
        what="word for a number",
        step="smoke",
        options="--recipe.sft.adam.lr high",
        message="--recipe.sft.adam.lr: found 'high', accepted is a finite number",
    ),
    Row(
        what="NaN",
        step="smoke",
        options="--recipe.ppo.kl-coef nan",
        message="--recipe.ppo.kl-coef: found 'nan', accepted is a finite number",
    ),
    Row(
        what="infinity",
        step="smoke",
        options="--recipe.sft.adam.lr inf",
        message="--recipe.sft.adam.lr: found 'inf', accepted is a finite number",
    ),
    Row(
        what="word for True or False",
        step="prepare",
        options="--personal-data maybe",
        message="--personal-data: found 'maybe', accepted is True or False",
    ),
    Row(
        what="no choice of several",
        step="ppo",
        options="--ppo.passes.precision float16",
        message="--ppo.passes.precision: found 'float16', accepted is float32 or bfloat16",
    ),
    Row(
        what="weights that would need a loss scale",
        step="ppo",
        options="--ppo.passes.weights float16",
        message="--ppo.passes.weights: found 'float16', accepted is float32 or bfloat16",
    ),
    Row(
        what="None where something is needed",
        step="sft",
        options="--seed None",
        message="--seed: found null, accepted is a whole number",
    ),
    Row(
        what="empty text",
        step="sft",
        options="--out ''",
        message="--out: found '', accepted is a text of at least one character, without NUL",
    ),
    Row(
        what="learning rate below 0",
        step="sft",
        options="--sft.adam.lr -1e-5",
        message="sft.adam.lr: found -1e-05, accepted are positive numbers",
    ),
    Row(
        what="learning rate 0",
        step="rm",
        options="--reward-model.adam.lr 0",
        message="reward_model.adam.lr: found 0.0, accepted are positive numbers",
    ),
    Row(
        what="Adam's beta of 1",
        step="sft",
        options="--sft.adam.beta2 1",
        message="sft.adam.beta2: found 1.0, accepted are numbers in [0, 1)",
    ),
    Row(
        what="empty batches",
        step="sft",
        options="--sft.batch-size 0",
        message="sft.batch_size: found 0, accepted are positive numbers",
    ),
    Row(
        what="no epochs",
        step="rm",
        options="--reward-model.epochs 0",
        message="reward_model.epochs: found 0, accepted are positive numbers",
    ),
    Row(
        what="dropout of everything",
        step="sft",
        options="--sft.residual-dropout 1",
        message="sft.residual_dropout: found 1.0, accepted is [0, 1)",
    ),
    Row(
        what="batch of plain text alone",
        step="sft",
        options="--sft.pretraining-fraction 1",
        message=(
            "sft.pretraining_fraction: found 1.0, accepted are shares below 1 that leave demonstrations in a "
            "batch of 32"
        ),
    ),
    Row(
        what="mix without plain text, SFT",
        step="sft",
        options="--sft.pretraining-fraction 0.1",
        message="corpus: found nothing, sft.pretraining_fraction needs plain text: accepted is a file or hub:NAME",
    ),
    Row(
        what="mix without plain text, PPO",
        step="ppo",
        options="--ppo.ptx-coef 1",
        message="corpus: found nothing, ppo.ptx_coef needs plain text: accepted is a file or hub:NAME",
    ),
    Row(
        what="mix of no blocks",
        step="ppo",
        options="--ppo.ptx-coef 1 --ppo.ptx-examples-per-episode 0",
        message=(
            "ppo.ptx_examples_per_episode: found 0.0, accepted is at least one block of plain text beside a "
            "minibatch of 4"
        ),
    ),
    Row(
        what="minibatch that does not divide the batch",
        step="ppo",
        options="--ppo.minibatch 3",
        message="ppo.minibatch: found 3, accepted are divisors of rollout_batch 8",
    ),
    Row(
        what="episodes that are no whole batches",
        step="ppo",
        options="--ppo.num-episodes 12",
        message="ppo.num_episodes: found 12, accepted are multiples of rollout_batch 8",
    ),
    Row(
        what="negative weight decay",
        step="sft",
        options="--sft.adam.weight-decay -1",
        message="sft.adam.weight_decay: found -1.0, accepted are numbers from 0",
    ),
    Row(
        what="negative warm-up",
        step="smoke",
        options="--recipe.pretraining.warmup-steps -1",
        message="recipe.pretraining.warmup_steps: found -1, accepted are numbers from 0",
    ),
    Row(
        what="negative coefficient",
        step="ppo",
        options="--ppo.kl-coef -0.02",
        message="ppo.kl_coef: found -0.02, accepted are numbers from 0",
    ),
    Row(
        what="discount above 1",
        step="ppo",
        options="--ppo.discount 1.5",
        message="ppo.discount: found 1.5, accepted are numbers from 0 to 1",
    ),
    Row(
        what="negative clip range",
        step="ppo",
        options="--ppo.cliprange -0.2",
        message="ppo.cliprange: found -0.2, accepted are numbers from 0",
    ),
    Row(
        what="average that never moves",
        step="ppo",
        options="--ppo.ema-decay 1",
        message="ppo.ema_decay: found 1.0, accepted is [0, 1)",
    ),
    Row(
        what="responses longer than the limit",
        step="ppo",
        options="--ppo.max-response-tokens 9",
        message="ppo.max_response_tokens: found 9, accepted are up to limits.max_response_tokens 8",
    ),
    Row(
        what="no room for a prompt",
        step="sft",
        options="--limits.max-prompt-tokens 0",
        message="limits.max_prompt_tokens: found 0, accepted are positive numbers",
    ),
    Row(
        what="blocks of one token",
        step="ppo",
        options="--block-tokens 1 --corpus corpus.jsonl --ppo.ptx-coef 1",
        message="block_tokens: found 1, accepted is at least 2: one predicts the next",
    ),
    Row(
        what="temperature below 0",
        step="eval",
        options="--temperature -1",
        message="temperature: found -1.0, accepted are 0 and positive numbers",
    ),
    Row(
        what="temperature 0 in PPO",
        step="ppo",
        options="--ppo.temperature 0",
        message="ppo.temperature: found 0.0, accepted are positive numbers",
    ),
    Row(
        what="part of the distribution in PPO",
        step="ppo",
        options="--ppo.top-p 0.9",
        message="instructrl ppo: found the unknown option --ppo.top-p, accepted in eval and generate alone: …",
    ),
    Row(
        what="option elsewhere",
        step="eval",
        options="--top-p 0.9",
        message="instructrl eval: found the unknown option --top-p, did you mean --sampling.top-p?",
    ),
    Row(
        what="penalty on repetitions",
        step="eval",
        options="--repetition-penalty 1.1",
        message="instructrl eval: found the unknown option --repetition-penalty, accepted is none: …",
    ),
    Row(
        what="more than all of the probability",
        step="eval",
        options="--sampling.top-p 1.1",
        message="sampling.top_p: found 1.1, accepted are numbers above 0 up to 1",
    ),
    Row(
        what="negative number of tokens",
        step="eval",
        options="--sampling.top-k -1",
        message="sampling.top_k: found -1, accepted are whole numbers from 0, which is all tokens",
    ),
    Row(
        what="share of the likeliest token above 1",
        step="eval",
        options="--sampling.min-p 2",
        message="sampling.min_p: found 2.0, accepted are numbers from 0 to 1",
    ),
    Row(
        what="empty stop string",
        step="eval",
        options="--sampling.stop=",
        message="--sampling.stop: found '', accepted is one text or more",
    ),
    Row(
        what="a model against itself",
        step="eval",
        options="--models model",
        message="models: found ['model'], accepted is at least one model, each different",
    ),
    Row(
        what="PPO with the mix under the name of PPO",
        step="smoke",
        options="--recipe.ppo.ptx-coef 1",
        message="recipe.ppo.ptx_coef: found 1.0, accepted is 0: ppo_ptx is the run with the mix",
    ),
    Row(
        what="heads that do not divide the width",
        step="smoke",
        options="--model.heads 5",
        message="model.heads: found 5, accepted are divisors of width 96",
    ),
    Row(
        what="context too short for a response",
        step="smoke",
        options="--model.context 100",
        message="model.context: found 100, accepted is at least 136, which recipe.limits and recipe.block_tokens take",
    ),
    Row(
        what="fewest above most",
        step="smoke",
        options="--amounts.min-completions 10",
        message="amounts.min_completions: found 10, accepted are 2 to max_completions 9",
    ),
    Row(
        what="no data",
        step="smoke",
        options="--amounts.demonstrations 0",
        message="amounts.demonstrations: found 0, accepted are positive numbers",
    ),
    Row(
        what="run without its paths",
        options="run files --model model",
        message="data, corpus: found nothing, this run needs --data, --corpus and --model",
    ),
    Row(
        what="nothing to prepare",
        options="data prepare --tokenizer model --out prepared",
        message="prepare: found no sources, accepted are demonstrations, comparisons or prompts",
    ),
    Row(
        what="unknown grouping",
        step="prepare",
        options="--group-by labeler",
        message="group_by: found 'labeler', accepted are user, source",
    ),
    Row(
        what="shares that leave no training",
        step="prepare",
        options="--valid-fraction 0.6 --test-fraction 0.4",
        message="valid_fraction, test_fraction: found (0.6, 0.4), accepted are shares that leave some train",
    ),
    Row(
        what="cap of 0",
        step="prepare",
        options="--cap-per-user 0",
        message="cap_per_user: found 0, accepted are positive numbers",
    ),
    Row(
        what="unknown country",
        step="prepare",
        options="--phone-regions USA",
        message="phone_regions: found 'USA', accepted are countries by two letters (ISO 3166)",
    ),
    Row(
        what="unknown part of a command",
        options="data chekc",
        message="data: found 'chekc', accepted are prepare and check",
    ),
    Row(
        what="unknown kind of data",
        options="data check novels corpus.jsonl",
        message="instructrl data check: argument kind: invalid choice: 'novels' (choose from …)",
    ),
]
