"""The reward model by TRL's names, on K completions of a prompt, with ties, as well as on pairs.

    from instructrl.integrations.trl import RewardConfig, RewardTrainer
    trainer = RewardTrainer(model, RewardConfig(output_dir="reward"), train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model("folder")

docs/hosts/from_trl_ppo.md has the columns that rows may have.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from instructrl.data.settings import Limits
from instructrl.integrations.trl.arguments import RewardConfig
from instructrl.integrations.trl.running import Runs, adapted, check_network
from instructrl.integrations.trl.tokens import IdEncoder, Ranked, rankings_of, token_id
from instructrl.models.backbone import check_context
from instructrl.models.scoring import RewardModel
from instructrl.objectives.reward_modeling import ComparisonLoss, comparison_loss
from instructrl.rollout.scoring import comparison_scores
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import RewardModelConfig


class RewardTrainer(Runs, RewardModelTrainer):
    """TRL's arguments in TRL's order.

    model: a transformers network for sequence classification with one output, or a folder of one. train_dataset,
    eval_dataset: rows that `tokens.rankings_of` takes: pairs, or K completions with their ranks. The loss of a prompt
    is the mean over its preferred pairs, that of a batch the mean over its prompts: on pairs it is TRL's.
    Raises ValueError for what is not honoured.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: RewardConfig | None = None,
        data_collator: Any = None,
        train_dataset: Iterable[Mapping[str, Any]] | None = None,
        eval_dataset: Iterable[Mapping[str, Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
    ) -> None:
        _refuse(
            data_collator=data_collator,
            compute_metrics=compute_metrics,
            callbacks=callbacks or None,
            optimizers=None if all(each is None for each in optimizers) else optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        args = RewardConfig() if args is None else args
        if not isinstance(args, RewardConfig):
            raise TypeError(f"args: found {type(args).__name__}, accepted is instructrl.integrations.trl.RewardConfig")
        check_network("model", model)
        if processing_class is None or train_dataset is None:
            raise ValueError("processing_class, train_dataset: found None among them, accepted are both")
        self.args, self.processing_class = args, processing_class
        end = _end(processing_class, args.eos_token)
        rows = rankings_of(train_dataset, processing_class, end, "train_dataset")
        self.eval_rows = rankings_of(eval_dataset or (), processing_class, end, "eval_dataset")
        rows, self.eval_rows = (_short(each, args.max_length) for each in (rows, self.eval_rows))
        if not rows:
            raise ValueError(
                f"train_dataset: found no rows of up to {args.max_length} tokens, accepted is at least one"
            )
        reward_model = RewardModel.load(model) if isinstance(model, str | Path) else RewardModel.of(model, "model")
        longest = max(row.longest for row in [*rows, *self.eval_rows])
        check_context(reward_model.network, longest, "max_length")
        device = args.device(reward_model)
        config = RewardModelConfig(
            adam=args.adam(),
            batch_size=args.rows_of_a_batch,
            epochs=math.ceil(args.num_train_epochs),
            microbatch=args.per_device_train_batch_size,
            passes=args.passes(device),
        )
        limits = Limits(max_prompt_tokens=longest, max_response_tokens=longest)
        encoder = IdEncoder(processing_class, limits, end)
        self._rows = {id(row.comparison): row for row in rows}
        reward_model = reward_model.to(device)
        if peft_config is not None:
            reward_model = adapted(reward_model, peft_config, args.seed)
        super().__init__(reward_model, [row.comparison for row in rows], encoder, config, seed=args.seed)
        self.num_steps = args.num_steps(len(rows))
        args.schedule(self.update, self.num_steps)

    def _loss(self, rows: Sequence[Any], scores: Tensor, preferred: Tensor, num_prompts: int) -> ComparisonLoss:
        margins = torch.tensor([self._rows[id(row)].margin for row in rows], device=scores.device)
        return comparison_loss(
            scores,
            preferred,
            num_prompts,
            margins=margins if bool(margins.any()) else None,
            center_coef=self.args.center_rewards_coefficient or 0.0,
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy over pairs and mean margin of scores on `eval_dataset`. Raises ValueError without one."""
        if not self.eval_rows:
            raise ValueError("eval_dataset: found None, accepted are rows as in train_dataset")
        rows = [row.comparison for row in self.eval_rows]
        scores = comparison_scores(self.reward_model, self.encoder, rows, self.args.per_device_eval_batch_size)
        gaps = [
            [(values[i] - values[j], row.margin) for i, j in row.comparison.preferred]
            for values, row in zip(scores, self.eval_rows, strict=True)
            if row.comparison.preferred
        ]
        pairs = torch.tensor([gap for row in gaps for gap, _ in row], dtype=torch.float64)
        losses = [
            float(-torch.nn.functional.logsigmoid(torch.tensor([gap - margin for gap, margin in row])).mean())
            for row in gaps
        ]
        return {
            "eval_loss": sum(losses) / len(losses),
            "eval_accuracy": float((pairs > 0).double().mean()),
            "eval_margin": float(pairs.mean()),
        }

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the reward model as a transformers folder."""
        self.write("reward_model", Path(output_dir or self.args.folder))


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: found one, accepted is none: this trainer has no such thing")


def _end(tokenizer: PreTrainedTokenizerBase, token: str | None) -> int:
    found = token_id(tokenizer, "eos") if token is None else tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"eos_token: found {token!r}, accepted are tokens of the tokenizer, and None where it has one")
    return found


def _short(rows: list[Ranked], limit: int | None) -> list[Ranked]:
    """Those with no sequence above a limit, as TRL has it; how many are left out is told."""
    kept = [row for row in rows if limit is None or row.longest <= limit]
    if len(kept) < len(rows):
        warnings.warn(
            f"max_length: {len(rows) - len(kept)} of {len(rows)} comparisons have a longer sequence than {limit} and "
            "are left out",
            stacklevel=3,
        )
    return kept
