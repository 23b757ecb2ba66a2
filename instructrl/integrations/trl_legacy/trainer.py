"""`generate` and `step` of TRL's trainer up to 0.11."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, set_seed

from instructrl import distributed
from instructrl.data.encoding import pad_left
from instructrl.integrations.trl.tokens import filler_of, token_id
from instructrl.integrations.trl_legacy.arguments import PPOConfig
from instructrl.integrations.trl_legacy.steps import Learner
from instructrl.integrations.trl_legacy.value_head import AutoModelForCausalLMWithValueHead, create_reference_model
from instructrl.models.policy import Policy
from instructrl.rollout.randomness import keyed_seed
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig

_DATA_ORDER = 1  # behind the seed in a key, as in `trainers.ppo`
# Columns of a data set that a log may read.
_LOGGED = ("label", "query", "response")


class PPOTrainer:
    """TRL 0.11's, with its arguments in its order.

    config: `PPOConfig` of this package. model: an `AutoModelForCausalLMWithValueHead`, trained in place. ref_model:
    another one, or None for a copy. dataset, data_collator: for `dataloader`, in an order of the seed. optimizer: of
    all weights of the model in their order; None is Adam by the config. lr_scheduler: of that optimizer, a step a step.
    Raises ValueError or TypeError for what is not honoured.
    """

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: AutoModelForCausalLMWithValueHead | None = None,
        ref_model: AutoModelForCausalLMWithValueHead | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
        training_data_collator: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        config = PPOConfig() if config is None else config
        if not isinstance(config, PPOConfig):
            found = type(config).__name__
            raise TypeError(f"config: found {found}, accepted is instructrl.integrations.trl_legacy.PPOConfig")
        if not isinstance(model, AutoModelForCausalLMWithValueHead):
            found = type(model).__name__
            raise TypeError(f"model: found {found}, accepted is an AutoModelForCausalLMWithValueHead of this package")
        if tokenizer is None:
            raise ValueError("tokenizer: found None, accepted is the model's")
        if training_data_collator is not None:
            raise ValueError("training_data_collator: found one, accepted is None: rows are padded here")
        if distributed.size_of_job() > 1:
            raise ValueError("PPOTrainer: found a job of several processes, accepted is one")
        set_seed(config.seed)
        device = torch.device("cuda") if torch.cuda.is_available() else next(model.parameters()).device
        self.config, self.tokenizer, self.model = config, tokenizer, model.to(device)
        self.ref_model = (create_reference_model(model, num_shared_layers) if ref_model is None else ref_model).to(
            device
        )
        self.accelerator = SimpleNamespace(device=device, num_processes=1, process_index=0, is_main_process=True)
        self.current_device = device
        reference = Policy(self.ref_model.pretrained_model)
        self.learner = Learner(config, model, reference, filler_of(tokenizer), optimizer, lr_scheduler)
        self.dataloader = None if dataset is None else self.prepare_dataloader(dataset, data_collator)

    def prepare_dataloader(self, dataset: Any, data_collator: Callable[[list[Any]], Any] | None = None) -> DataLoader:
        """Batches of `config.batch_size`, the last of a pass left out where it is smaller."""
        if self.config.remove_unused_columns and hasattr(dataset, "column_names"):
            kept = {*_LOGGED, "input_ids", "past_key_values", "attention_mask"}
            dataset = dataset.remove_columns([name for name in dataset.column_names if name not in kept])
        generator = torch.Generator().manual_seed(keyed_seed(self.config.seed, _DATA_ORDER))
        size = self.config.batch_size
        return DataLoader(dataset, size, shuffle=True, collate_fn=data_collator, drop_last=True, generator=generator)

    @torch.no_grad()
    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses to one query [L], as [1, L], or to a list of them, as a list, by transformers' own `generate`.

        A response of the list ends behind its first end of text. length_sampler: new tokens, asked for each batch.
        """
        networks = [self.model, self.ref_model] if generate_ref_response else [self.model]
        if isinstance(query_tensor, Tensor) and query_tensor.dim() != 1:
            raise ValueError(
                f"query_tensor: found shape {tuple(query_tensor.shape)}, accepted is [L], or a list of them"
            )
        if isinstance(query_tensor, Tensor):
            if length_sampler is not None:
                generation_kwargs["max_new_tokens"] = length_sampler()
            start = 0 if return_prompt else len(query_tensor)
            ids = query_tensor[None].to(self.current_device)
            found = [network.generate(input_ids=ids, **generation_kwargs)[:, start:] for network in networks]
        else:
            how = (query_tensor, length_sampler, batch_size, return_prompt, generation_kwargs)
            found = [self._generated(network, *how) for network in networks]
        return tuple(found) if generate_ref_response else found[0]

    def _generated(
        self,
        network: AutoModelForCausalLMWithValueHead,
        queries: list[Tensor],
        length_sampler: Callable[[], int] | None,
        size: int,
        return_prompt: bool,
        given: Mapping[str, Any],
    ) -> list[Tensor]:
        found, given = [], dict(given)
        padding, end = filler_of(self.tokenizer), token_id(self.tokenizer, "eos")
        for first in range(0, len(queries), size):
            if length_sampler is not None:
                given["max_new_tokens"] = length_sampler()
            rows = [query.tolist() for query in queries[first : first + size]]
            ids, mask = (x.to(self.current_device) for x in pad_left(rows, padding))
            for row, whole in zip(rows, network.generate(input_ids=ids, attention_mask=mask, **given), strict=True):
                query, response = whole[ids.shape[1] - len(row) : ids.shape[1]], whole[ids.shape[1] :]
                ends = [place for place, token in enumerate(response.tolist()) if token == end]
                response = response[: ends[0] + 1] if ends else response
                found.append(torch.cat([query, response]) if return_prompt else response)
        return found

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Learn from `config.batch_size` responses. Returns numbers by TRL's names.

        queries, responses: ids, [L] each. scores: a number each, as a tensor or not. response_masks: [L] each, 0 where
        a token of a response is not learned from. Raises ValueError, before anything changes, for other counts, empty
        rows and scores that are not finite; RuntimeError where a loss or a gradient is not.
        """
        return self.learner.learn(queries, responses, scores, response_masks)

    def log_stats(self, stats: Mapping[str, Any], batch: Any, rewards: Any, columns_to_log: Sequence[str] = ()) -> None:
        """A line of `metrics.jsonl` where `project_kwargs` names a folder, nowhere else."""
        folder = self.config.project_kwargs.get("logging_dir")
        if folder is None:
            return
        found = torch.as_tensor([float(x) for x in rewards])
        numbers = {name: float(value) for name, value in stats.items() if not isinstance(value, Tensor | list)}
        own = {"env/reward_mean": float(found.mean()), "env/reward_std": float(found.std(correction=0))}
        RunLog(Path(folder), continued=True).metrics("ppo", self.learner.step - 1, {**numbers, **own})

    def save_pretrained(self, folder: str | Path) -> None:
        """The model with its value head and the tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def save_checkpoint(self, folder: str | Path) -> None:
        """Everything that the next `step` depends on: weights, value head, moments, schedule, KL, running scores."""
        self.learner.save(self._checkpoints(folder), RunLog(None))

    def load_checkpoint(self, folder: str | Path) -> int:
        """Go on with the newest that `save_checkpoint` left in a folder. Returns how many steps are done. Raises
        ValueError where there is none."""
        found = self._checkpoints(folder).newest()
        if found is None:
            raise ValueError(f"load_checkpoint: found none in {folder}, accepted is what save_checkpoint was given")
        self.learner.resume(found)
        return self.learner.step

    def _checkpoints(self, folder: str | Path) -> Checkpoints:
        return Checkpoints(Path(folder), CheckpointConfig(), RunLog(None).warn)
