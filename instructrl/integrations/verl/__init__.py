"""verl: its advantages, its policy and value losses, its log-probabilities and its fused head.

    from instructrl.integrations import verl
    verl.install()       # before or after the trainers are imported

Its processes are started by Ray, so it is told by the environment to do so in each of them:
`VERL_USE_EXTERNAL_MODULES=instructrl.integrations.verl_install`.

Policy losses are chosen by name: `actor_rollout_ref.actor.policy_loss.loss_mode=instructrl` is "vanilla", and
`instructrl_gspo`, `instructrl_cispo` and `instructrl_sapo` are the others.
"""

from instructrl.integrations.adapter import Adapter
from instructrl.integrations.verl import advantages, log_probs, losses

ADAPTER = Adapter(
    host="verl",
    distribution="verl",
    package="verl",
    tried=("0.9.1",),
    replacements=(*advantages.ROWS, *losses.ROWS, *log_probs.ROWS),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall
