"""Sampling responses with a vLLM server, whose GPUs are not those of the trainer.

Weights go over as a file in a folder that both see, told of by name; nothing is unpickled on either side.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from instructrl import distributed
from instructrl.data.settings import Limits
from instructrl.models.adapters import merged
from instructrl.models.policy import Policy
from instructrl.models.spread import unsharded
from instructrl.rollout import vllm_package
from instructrl.rollout.vllm_rollout import ByVLLM, ended

# Requests under way at a time; the server makes its batches of them. Seconds that one may take: a response is long.
_TOGETHER, _PATIENCE = 256, 3600


class VLLMServer(ByVLLM):
    """Another process, or machine, over HTTP.

    url: of a server with the same architecture, started as docs/engines.md says, so that it takes weights. limits: of
    prompts and responses. folder: where the weights are written, by a path that the server has, too. precision: of the
    weights in it. Raises RuntimeError where no such server answers or is of an older version than is known, ValueError
    where it was started for shorter sequences.
    """

    def __init__(self, url: str, limits: Limits, folder: str | Path, *, precision: str = "float32") -> None:
        super().__init__(limits, precision)
        self._url, self._folder = url.rstrip("/"), Path(folder)
        vllm_package.check_version(self._asked("version")["version"])
        (model,) = self._asked("v1/models")["data"]
        if (most := model["max_model_len"]) < limits.total:
            raise ValueError(f"limits: found {limits.total} tokens, the vLLM server was started for up to {most}")
        # A tree of modules in words.
        inspection = self._asked("collective_rpc", {"method": "get_model_inspection"})["results"][0]
        self._modules = set(re.findall(r"\((\w+)\): ", inspection))

    @contextmanager
    def _with_weights_of(self, policy: Policy) -> Iterator[None]:
        with unsharded(policy) as everywhere, merged(everywhere) as found:
            distributed.from_main(lambda: self._send(found))
        yield

    def _send(self, policy: Policy) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A tensor that is tied is in the file by each of its names.
        weights = {name: weight.cpu().clone() for name, weight in self._handed_over(policy)}
        save_file(weights, self._folder / "model.safetensors")
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(self._folder.resolve())}}
        self._asked("collective_rpc", reload)
        if not self._asked("reset_prefix_cache", {})["success"]:
            raise RuntimeError("vLLM: found its prefix cache in use after a weight update, accepted is an idle server")

    def _generate(self, prompts: list[list[int]], parameters: list[dict[str, Any]]) -> list[list[int]]:
        requests = [{"token_ids": ids, "sampling_params": each} for ids, each in zip(prompts, parameters, strict=True)]
        with ThreadPoolExecutor(_TOGETHER) as threads:
            answers = list(threads.map(lambda request: self._asked("inference/v1/generate", request), requests))
        choices = [choice for answer in answers for choice in answer["choices"]]
        return [ended(choice["token_ids"], choice["finish_reason"]) for choice in choices]

    def _asked(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """The answer to a request, in which content is sent."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self._url}/{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RuntimeError(f"vllm.server: found {error.code} from {self._url}/{path}: {said}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise RuntimeError(
                f"vllm.server: found no answer from {self._url}/{path}: {error}; accepted is the address of a vLLM "
                "server"
            ) from error
