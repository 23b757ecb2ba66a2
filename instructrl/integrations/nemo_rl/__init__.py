"""NeMo-RL: its policy loss and value loss, its advantages, their whitening, and its KL.

    from instructrl.integrations import nemo_rl
    nemo_rl.install()
    ...
    loss_fn, value_loss_fn = nemo_rl.with_ours(loss_fn), nemo_rl.with_ours(value_loss_fn)

`grpo_train`, `ppo_train` and the others take loss functions as objects, which they send to their workers; `with_ours`
makes one that computes here what the host's computes there, with the same options, and nothing of the host is patched
for it. Advantages and the KL are replaced in the process that calls `install`, which is where they are computed.

Where the mask is False nothing is read. A loss over no token is 0.
"""

import ast
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructrl.integrations.adapter import Adapter, Replacement
from instructrl.integrations.nemo_rl import advantages, losses
from instructrl.integrations.selfcheck import Sizes

_placed: dict[str, Any] = {}


def with_ours(loss_fn: Any) -> Any:
    """The same loss function, computed here where `install` has found that it gives the host's numbers.

    loss_fn: a `ClippedPGLossFn` or a `MseValueLossFn`; any other object comes back as it is. Its class is made here, of
    the host's, so that it is sent to workers with what it needs. They import `instructrl`, which has to be there.
    """
    kind = type(loss_fn)
    call = _placed.get(kind.__name__) if kind.__module__ == losses.MODULE else None
    if call is None:
        return loss_fn
    made = object.__new__(type(kind.__name__, (kind,), {"__call__": call}))
    made.__dict__.update(loss_fn.__dict__)
    return made


def _place(name: str) -> Callable[[Any], Callable[[], None]]:
    def put(ours: Any) -> Callable[[], None]:
        _placed[name] = ours
        return lambda: _placed.pop(name, None) and None

    return put


def _version() -> str:
    """Of the package as it is imported: a checkout says it in a file, and 0.0.0 in the registry is a name alone."""
    try:
        found = importlib.metadata.version("nemo_rl").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        found = ""
    spec = importlib.util.find_spec("nemo_rl")
    if found not in ("", "0.0.0") or spec is None or not spec.submodule_search_locations:
        return found if spec else ""
    source = Path(spec.submodule_search_locations[0], "package_info.py").read_text(encoding="utf-8")
    numbers = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            numbers[ast.unparse(node.targets[0])] = node.value.value
    return f"{numbers.get('MAJOR')}.{numbers.get('MINOR')}.{numbers.get('PATCH')}{numbers.get('PRE_RELEASE', '')}"


_TOKENS = Sizes(batch=256, tokens=1024)

ADAPTER = Adapter(
    host="nemo_rl",
    distribution="nemo_rl",
    package="nemo_rl",
    tried=("0.6.0",),
    found_version=_version,
    replacements=(
        Replacement(
            name="nemo_rl.algorithms.loss.loss_functions:ClippedPGLossFn.__call__",
            signature="(self, next_token_logprobs, data, global_valid_seqs, global_valid_toks)",
            sources=("98981f18f4ee",),
            stand_in=losses.policy_loss,
            examples=losses.policies,
            measured=_TOKENS,
            call=losses.as_loss("ClippedPGLossFn", "ClippedPGLossConfig"),
            put=_place("ClippedPGLossFn"),
        ),
        Replacement(
            name="nemo_rl.algorithms.loss.loss_functions:MseValueLossFn.__call__",
            signature="(self, logits, data, global_valid_seqs, global_valid_toks)",
            sources=("67aa12504893",),
            stand_in=losses.value_loss,
            examples=losses.values,
            measured=_TOKENS,
            call=losses.as_loss("MseValueLossFn", "MseValueLossConfig"),
            put=_place("MseValueLossFn"),
        ),
        Replacement(
            name="nemo_rl.algorithms.advantage_estimator:GeneralizedAdvantageEstimator._compute_gae",
            signature="(self, token_level_rewards, values, mask, gae_lambda=None)",
            sources=("677cd9eb05bc",),
            stand_in=advantages.compute_gae,
            examples=advantages.rollouts,
            measured=_TOKENS,
            call=advantages.counted,
        ),
        Replacement(
            name="nemo_rl.algorithms.advantage_estimator:GeneralizedAdvantageEstimator._reward_whiten",
            signature="(self, rewards, mask, shift_mean=True)",
            sources=("4a65a5471bab",),
            stand_in=advantages.reward_whiten,
            examples=advantages.whitenings,
            measured=_TOKENS,
            call=advantages.counted,
        ),
        Replacement(
            name="nemo_rl.algorithms.utils:calculate_kl",
            signature="(logprobs, logprobs_reference, kl_type='k3', input_clamp_value=20.0, output_clamp_value=10.0, "
            "importance_sampling_weights=None)",
            sources=("0f4978b8417a",),
            stand_in=advantages.calculate_kl,
            examples=advantages.kls,
            measured=_TOKENS,
        ),
    ),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall
