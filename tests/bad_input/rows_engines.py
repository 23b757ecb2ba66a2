"""What samples the responses, who is told of a run, and where it computes."""

from table import Row

ROWS = [
    Row(
        what="unknown engine",
        step="ppo",
        options="--engine sglang",
        message="--engine: found 'sglang', accepted is builtin or vllm",
    ),
    Row(
        what="vLLM, which is not installed",
        step="ppo",
        options="--engine vllm",
        message=(
            "engine: found 'vllm', which is not installed; accepted is 'builtin', or 'vllm' after "
            "pip install instructrl[vllm]"
        ),
    ),
    Row(
        what="no memory for the cache",
        step="ppo",
        options="--engine vllm --vllm.kv-cache-gib 0",
        message="vllm.kv_cache_gib: found 0.0, accepted are positive numbers",
    ),
    Row(
        what="word for the memory of the cache",
        step="ppo",
        options="--engine vllm --vllm.kv-cache-gib most",
        message="--vllm.kv-cache-gib: found 'most', accepted is a finite number",
    ),
    Row(
        what="network divided among no processes",
        step="ppo",
        options="--engine vllm --vllm.tensor-parallel 0",
        message="vllm.tensor_parallel: found 0, accepted are whole numbers from 1",
    ),
    Row(
        what="setting of vLLM for another engine",
        step="ppo",
        options="--vllm.kv-cache-gib 2",
        message="vllm.kv_cache_gib: found 2.0, which nothing uses without engine vllm; accepted is both, or neither",
    ),
    Row(
        what="server without its http",
        step="ppo",
        options="--engine vllm --vllm.server gpu2:8000 --vllm.weights-folder weights",
        message="vllm.server: found 'gpu2:8000', accepted are addresses that begin with http:// or https://",
    ),
    Row(
        what="server without a folder for the weights",
        step="ppo",
        options="--engine vllm --vllm.server http://127.0.0.1:9",
        message="vllm.weights_folder: found None with server http://127.0.0.1:9, accepted is both, or neither",
    ),
    Row(
        what="server that does not answer",
        step="ppo",
        options="--engine vllm --vllm.server http://127.0.0.1:9 --vllm.weights-folder weights",
        message=(
            "vllm.server: found no answer from http://127.0.0.1:9/version: …; accepted is the address of a vLLM server"
        ),
    ),
    Row(
        what="memory for a server that has its own",
        step="ppo",
        options="--engine vllm --vllm.server http://127.0.0.1:9 --vllm.weights-folder weights --vllm.kv-cache-gib 2",
        message=(
            "vllm.kv_cache_gib: found 2.0, which nothing uses without an engine in this process, which vllm.server "
            "stands in for; accepted is both, or neither"
        ),
    ),
    Row(
        what="unknown tracker",
        step="sft",
        options="--track mlflow",
        message="--track: found 'mlflow', accepted is tensorboard or wandb or trackio or none",
    ),
    Row(
        what="unknown device",
        step="sft",
        options="--device tpu",
        message="--device: found 'tpu', accepted is auto or cuda or mps or cpu",
    ),
]
