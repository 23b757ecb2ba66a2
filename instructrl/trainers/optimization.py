"""Adam and its schedules, one object for each network that learns."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from instructrl.models.masters import learned, round_masters
from instructrl.models.spread import placed_like, whole_norm
from instructrl.trainers.settings import AdamConfig


class NotFiniteError(RuntimeError):
    """A loss, a gradient or a metric is NaN or infinite."""


class Update:
    """One network's optimiser and schedule. The caller accumulates gradients; `step` applies and clears them.

    For weights in bfloat16, gradients, their norm, moments and steps are those of the float32 masters.
    """

    def __init__(self, module: nn.Module, config: AdamConfig) -> None:
        self._module = module
        self.parameters = [p for p in learned(module) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over weights, gradients and moments
        )
        self.schedule: LRScheduler | None = None
        self._max_grad_norm = config.max_grad_norm

    def cosine(self, num_steps: int, *, warmup_steps: int = 0) -> "Update":
        """Cosine from the peak to a tenth of it (paper, C.1 and C.2: without warm-up); `advance_schedule` per step."""
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self.optimizer, num_warmup_steps=warmup_steps, num_training_steps=num_steps, min_lr_rate=0.1
        )
        return self

    def warmup(self, num_iterations: int, start: float = 0.1) -> "Update":
        """From `start` times the peak to the peak over the first iterations, then constant (paper, C.4)."""
        if num_iterations > 0:
            self.schedule = LinearLR(self.optimizer, start_factor=start, total_iters=num_iterations)
        return self

    @property
    def lr(self) -> float:
        """The current learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, *losses: float) -> float:
        """Apply the accumulated gradient and clear it. Returns its norm before clipping.

        losses: those whose gradient it is; only checked to be finite, since their coefficients are in the gradient.
        Raises NotFiniteError if one of them or the gradient is not finite, before any weight is changed.
        """
        norm = self.finite_norm(*losses)
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self._max_grad_norm, norm)
        self.optimizer.step()
        round_masters(self._module)
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def finite_norm(self, *losses: float) -> Tensor:
        """The gradient's norm: a scalar. Raises NotFiniteError where that or one of the losses is not finite."""
        norm = whole_norm([p.grad for p in self.parameters if p.grad is not None])
        if not all(map(math.isfinite, losses)) or not bool(norm.isfinite()):
            self.optimizer.zero_grad(set_to_none=True)
            found = " + ".join(f"{loss:.4g}" for loss in losses)
            raise NotFiniteError(f"the loss is {found} and the gradient's norm {float(norm):.4g}")
        return norm

    def advance_schedule(self) -> None:
        if self.schedule is not None:
            self.schedule.step()

    def state_dict(self) -> dict:
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        # A copy: the tensors that are given may lie in a file, which would stay on the disk as long as they are used.
        optimizer = copy.deepcopy(state["optimizer"])
        for number, moments in optimizer["state"].items():
            own = dict.fromkeys(moments, self.parameters[number])
            optimizer["state"][number] = placed_like(moments, own)
        self.optimizer.load_state_dict(optimizer)
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
