"""A PPO iteration of AgileRL, for `benchmarks.scaling.iteration`; run by an interpreter that has agilerl.

    PYTHON benchmarks/scaling/agilerl_iteration.py FOLDER RANK RESPONSE_TOKENS MINIBATCH CHECKPOINTED < ids.json

ids.json: lists of token ids, prompts. Rewards are random numbers, so no reward model is in the time or the memory,
and all adapters, actor, reference and critic, are on one base. Cost alone is compared: of responses with one turn it
gives the reward to every token. Two iterations, of which the second counts; prints a line of JSON after "@".
"""

import json
import resource
import sys
import time

import agilerl
import torch

agilerl.HAS_LIGER_KERNEL = False  # it would put Triton's kernels into the network, which need a GPU

from agilerl.algorithms.ppo_llm import PPO  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


def main(folder: str, rank: int, response_tokens: int, minibatch: int, checkpointed: bool) -> None:
    torch.set_num_threads(2)
    prompts = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    agent = PPO(
        pad_token_id=tokenizer.pad_token_id,
        pad_token=tokenizer.pad_token,
        model_name=folder,
        model_config={"dtype": torch.float32, "attn_implementation": "sdpa"},
        batch_size=len(prompts),
        micro_batch_size_per_gpu=minibatch,
        mini_batch_size=minibatch,
        top_k=0,
        max_output_tokens=response_tokens,
        max_model_len=max(map(len, prompts)) + response_tokens,
        lora_config=LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        gradient_checkpointing=checkpointed,
        use_liger_loss=False,
        device="cpu",
        seed=0,
    )
    rows = [{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()} for ids in prompts]
    generator, found = torch.Generator().manual_seed(0), {}
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        token_ids, masks, *_ = agent.get_action(rows)
        generated = time.perf_counter() - start
        agent.learn((token_ids, masks, torch.randn(len(rows), generator=generator)))
        seconds = time.perf_counter() - start
        found = {"seconds": seconds, "phases": {"generate": generated, "learn": seconds - generated}}
        found["cpu_seconds"] = time.process_time() - cpu
        found["response_tokens"] = int(sum(mask.sum() for mask in masks))
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("@" + json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5] == "1")
