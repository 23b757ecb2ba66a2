"""lm-evaluation-harness on the models of this package, in this process.

    from instructrl.integrations.lm_eval import lm_eval_results
    for row in lm_eval_results(policy, encoder, ["my_task"], include_path="tasks").rows:
        print(row.task, row.measure.metric, row.measure.value)

`model.PolicyLM` is a model for lm-eval's own functions. Nothing here seeds the global generators.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrl.data.encoding import Encoder
from instructrl.models.policy import Policy

if TYPE_CHECKING:
    from instructrl.integrations.lm_eval.results import TaskResults as TaskResults


def lm_eval_results(
    policy: Policy,
    encoder: Encoder,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> "TaskResults":
    """What lm-eval measures of a policy in memory.

    encoder: whose chat template is used, where it has one. tasks: names of tasks, groups or tags. include_path: a
    folder of YAML files with more of them; the functions that they name are run. limit: the first items of each task
    alone. num_fewshot: examples in each context; None is what each task says. seed: of the choice of examples, and of
    tasks that sample.

    The global generators of Python, NumPy and torch are left as they are. Raises ValueError as `tasks.open_tasks` and
    `results.measured` do.
    """
    from instructrl.integrations.lm_eval.results import joined, measured
    from instructrl.integrations.lm_eval.tasks import open_tasks

    opened = open_tasks(tasks, include_path)
    how: Any = {"limit": limit, "num_fewshot": num_fewshot, "seed": seed}
    return joined([measured(policy, encoder, asked, **how) for asked in opened])
