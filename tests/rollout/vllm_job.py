"""A process of a job that samples with vLLM itself: `python vllm_job.py FOLDER TOGETHER`, under torchrun.

The main one prints the greedy responses of vLLM and of the decoding loop here, after two changes of the weights.
"""

import json
import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

from tiny import tiny_encoder, words  # noqa: E402

from instructrl import distributed  # noqa: E402
from instructrl.models.policy import Policy  # noqa: E402
from instructrl.rollout.generate import Sampling, sample_rollout  # noqa: E402
from instructrl.rollout.settings import VLLMConfig  # noqa: E402
from instructrl.rollout.vllm_engine import VLLMEngine  # noqa: E402


def main(folder: str, together: int) -> None:
    encoder = tiny_encoder()
    prompts = [words(random.Random(i)) for i in range(7)]
    policy = Policy.load(folder)
    config = VLLMConfig(kv_cache_gib=0.06, enforce_eager=True, tensor_parallel=together)
    engine = VLLMEngine(folder, encoder.limits, config)
    sampling = Sampling(seed=0, temperature=0, max_response_tokens=6)
    for scale in (-1.0, 1.5):
        for parameter in policy.parameters():
            parameter.data.mul_(scale)
        rows = [function(policy, encoder, prompts, sampling) for function in (engine, sample_rollout)]
        if distributed.is_main():
            found = [[x.sequences.response.tolist(), x.sequences.response_mask.tolist()] for x in rows]
            print(json.dumps([*found, [x.finished.tolist() for x in rows]]), flush=True)


if __name__ == "__main__":
    with distributed.joined():
        main(sys.argv[1], int(sys.argv[2]))
