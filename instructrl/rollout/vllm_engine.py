"""Sampling responses with vLLM in this process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from instructrl import distributed
from instructrl.data.settings import Limits
from instructrl.models.adapters import merged
from instructrl.models.policy import Policy
from instructrl.models.spread import unsharded
from instructrl.rollout import vllm_package
from instructrl.rollout.settings import VLLMConfig
from instructrl.rollout.vllm_rollout import ByVLLM, ended


class VLLMEngine(ByVLLM):
    """An engine of its own.

    model: a transformers folder or name; gives the architecture, and weights until the first call. limits: of prompts
    and responses. precision: of vLLM's weights and cache. options: further arguments of `vllm.LLM`. Raises RuntimeError
    where vLLM is not installed or too old, ValueError for a cache that has no room here or not for one response.

    On a GPU it gives its memory back between the calls. In a job each process samples its part of the rows, or each
    `config.tensor_parallel` of them together.
    """

    def __init__(
        self,
        model: str | Path,
        limits: Limits,
        config: VLLMConfig = VLLMConfig(),
        *,
        precision: str = "float32",
        **options: Any,
    ) -> None:
        self._vllm = vllm_package.load()
        super().__init__(limits, precision, config.tensor_parallel)
        settings = {
            "dtype": precision,
            "max_model_len": limits.total,
            "enforce_eager": config.enforce_eager,
            "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
            # Of all memory. The cache has a size of its own; a GPU is still looked at, whether this much of it is free.
            "gpu_memory_utilization": 0.01,
            # prompts and responses are ids: a second tokenizer could only disagree
            "skip_tokenizer_init": True,
            # no sampling settings out of the model's generation_config.json
            "generation_config": "vllm",
            **vllm_package.platform_options(),
            **_job_options(config),
            **options,
        }
        with vllm_package.process_kept():
            try:
                self._llm = self._vllm.LLM(str(model), **settings)
                self._try_out()
            except ValueError as error:
                # It may speak of its own settings for memory, which are not those of this one.
                said = " ".join(str(error).split())
                raise ValueError(
                    f"engine: found what vLLM does not take, with vllm.kv_cache_gib {config.kv_cache_gib}: {said}"
                ) from error
            if distributed.size_of_job() > 1:
                vllm_package.leave_process_group(self._llm)
            self._modules = self._llm.apply_model(_module_names)[0]
            self._sleeps = bool(settings.get("enable_sleep_mode"))
            if self._sleeps:
                self._llm.sleep(level=2)

    def _try_out(self) -> None:
        """One token. A network whose sizes vLLM's kernels do not take, as heads of 16 on a CPU, is refused by this."""
        token = self._vllm.SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        self._llm.generate([{"prompt_token_ids": [0]}], [token], use_tqdm=False)

    @contextmanager
    def _with_weights_of(self, policy: Policy) -> Iterator[None]:
        """An engine that sleeps is awake inside: first the memory of its weights, and the cache once they are there, so
        that the copies of the policy's that hand them over are gone by then."""
        if self._sleeps:
            self._llm.wake_up(["weights"])
        with unsharded(policy) as everywhere, merged(everywhere) as found:
            weights = self._handed_over(found)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._sleeps:
            self._llm.wake_up(["kv_cache"])
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM: found its prefix cache in use after a weight update, accepted is an idle engine")
        yield
        if self._sleeps:
            self._llm.sleep(level=2)

    def _generate(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[list[int]]:
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts],
            [self._vllm.SamplingParams(**each) for each in parameters],
            use_tqdm=False,
        )
        completions = [completion for output in outputs for completion in output.outputs]
        return [ended(x.token_ids, x.finish_reason) for x in completions]


def _job_options(config: VLLMConfig) -> Mapping[str, Any]:
    """Arguments of `vllm.LLM` in a job of several processes: each has an engine, `tensor_parallel` of them work as one.

    Raises ValueError for a number of them that does not divide the job.
    """
    count = distributed.size_of_job()
    if count % config.tensor_parallel:
        raise ValueError(
            f"vllm.tensor_parallel: found {config.tensor_parallel} in a job of {count} processes, accepted are the "
            "divisors of that"
        )
    if count == 1:
        return {}
    return {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": config.tensor_parallel}


def _module_names(model: nn.Module) -> set[str]:
    """The last parts of the paths of vLLM's modules.

    Raises ValueError for a network of transformers': vLLM gives its classes another `__init__` and `__call__`, in all
    of the process, and a policy of such a class does not run any more.
    """
    if type(model).__module__.startswith("vllm.model_executor.models.transformers"):
        raise ValueError(
            f"engine: found {type(model).__name__}, since vLLM has no network of its own for this model; accepted is "
            "builtin"
        )
    return {path.rpartition(".")[2] for path, _ in model.named_modules()}
