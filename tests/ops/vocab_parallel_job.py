"""Three processes that compute with a vocabulary that is split over them, and over two of them.

Run by test_vocab_parallel.py as a program: it imports once and forks, before anything has started a thread.
"""

import multiprocessing
import re
import sys
import tempfile

import op_definitions as definitions
import pytest
import torch
import torch.distributed as dist
from op_accuracy import assert_no_less_accurate

from instructrl import kernels, ops
from instructrl.ops import vocab_parallel
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.vocab_parallel import VocabShards

V, N, D = 40, 11, 6
# An empty range, and ranges of other lengths.
BOUNDS = {2: (0, 27, V), 3: (0, 9, 9, V)}
MASK = torch.arange(N) % 4 != 2
SETTINGS = {"temperature": 0.7, "logit_settings": LogitSettings(scale=2.0, softcap=5.0)}
PLAIN = {"temperature": 1.0, "logit_settings": LogitSettings()}


def draws(dtype):
    g = torch.Generator().manual_seed(0)
    numbers = {"hidden": (N, D), "weight": (V, D), "bias": (V,), "by_logprob": (N,), "by_entropy": (N,)}
    found = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in numbers.items()}
    found["bias"][3] = -torch.inf  # an excluded id, which is no token
    tokens = torch.randint(4, V, (N,), generator=g)
    return {name: x.to(dtype) for name, x in found.items()} | {"tokens": tokens}


def differentiated(results, inputs, drawn):
    total = (results[0] * drawn["by_logprob"].to(results[0])).sum()
    if len(results) > 1:
        total = total + (results[1] * drawn["by_entropy"].to(results[1])).sum()
    return [*results, *torch.autograd.grad(total, inputs)]


def logits_of(drawn):
    """In the dtype of what was drawn, the same for truth, yardstick and shards."""
    numbers = [drawn[name].double() for name in ("hidden", "weight", "bias")]
    return torch.nn.functional.linear(*numbers).to(drawn["hidden"].dtype)


def whole(drawn, settings, mask, dtype, with_entropy, from_hidden):
    """The definition, with the whole vocabulary in one place."""
    names, rest = ("hidden", "weight", "bias"), {"mask": mask, **settings}
    if from_hidden:
        inputs = [drawn[name].detach().to(dtype).requires_grad_() for name in names]
        found = definitions.linear_token_logprobs_and_entropy(*inputs[:2], drawn["tokens"], inputs[2], **rest)
    else:
        inputs = [logits_of(drawn).to(dtype).requires_grad_()]
        found = definitions.token_logprobs_and_entropy(inputs[0], drawn["tokens"], **rest)
    return differentiated(found if with_entropy else found[:1], inputs, drawn)


def sharded(drawn, settings, mask, shards, with_entropy, from_hidden):
    first, end = shards.local()
    suffix = "_and_entropy" if with_entropy else ""
    if from_hidden:
        hidden, *head = (drawn[name].clone() for name in ("hidden", "weight", "bias"))
        inputs = [x.requires_grad_() for x in (hidden, *(x[first:end].clone() for x in head))]
        function = getattr(vocab_parallel, f"linear_token_logprobs{suffix}")
        rest = {"bias": inputs[2], "max_workspace_bytes": 16 * V * 4}  # a few chunks
        found = function(*inputs[:2], drawn["tokens"], shards=shards, mask=mask, **rest, **settings)
    else:
        inputs = [logits_of(drawn)[:, first:end].clone().requires_grad_()]
        function = getattr(vocab_parallel, f"token_logprobs{suffix}")
        found = function(inputs[0], drawn["tokens"], shards=shards, mask=mask, **settings)
    return differentiated(found if with_entropy else [found], inputs, drawn)


def compare(shards, dtype, settings, mask, with_entropy, from_hidden):
    drawn, (first, end) = draws(dtype), shards.local()
    found = sharded(drawn, settings, mask, shards, with_entropy, from_hidden)
    truth, near = (whole(drawn, settings, mask, x, with_entropy, from_hidden) for x in (torch.float64, torch.float32))
    cut = len(found) - (2 if from_hidden else 1)  # from here on results are of this process's range
    for place, (ours, right, plain) in enumerate(zip(found, truth, near, strict=True)):
        if place >= cut and from_hidden:
            right, plain = right[first:end], plain[first:end]
        elif place >= cut:
            right, plain = right[:, first:end], plain[:, first:end]
        assert_no_less_accurate(ours.detach(), plain.detach(), right.detach(), name=f"result {place}")
    for result in found[: cut - (1 if from_hidden else 0)]:
        everywhere = [torch.empty_like(result) for _ in range(dist.get_world_size(shards.group))]
        dist.all_gather(everywhere, result.detach(), group=shards.group)
        assert all(torch.equal(x, result) for x in everywhere), "other bits in another process"


def refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def errors(rank):
    drawn = draws(torch.float32)
    logits, tokens, uneven = torch.zeros(N, 14), drawn["tokens"], VocabShards(bounds=BOUNDS[3])
    two = VocabShards(bounds=BOUNDS[2])
    refused(
        lambda: vocab_parallel.token_logprobs(logits, tokens, shards=two),
        "bounds: found 2 ranges with a process group of 3, accepted is one range for each process",
    )
    length = BOUNDS[3][rank + 1] - BOUNDS[3][rank]
    refused(
        lambda: vocab_parallel.token_logprobs(logits, tokens, shards=uneven),
        f"logits: found 14 ids, accepted is {length}, the range of rank {rank}",
    )
    refused(
        lambda: vocab_parallel.linear_token_logprobs(drawn["hidden"], drawn["weight"], tokens, shards=uneven),
        f"weight: found 40 ids, accepted is {length}, the range of rank {rank}",
    )
    refused(
        lambda: vocab_parallel.token_logprobs(logits, tokens + V, shards=VocabShards.even(V)),
        "tokens: found an id out of range where the mask is True, accepted are ids from 0 to 39",
    )


def work(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    pair = dist.new_group([0, 1])
    errors(rank)
    for backend in ("reference", "native"):
        if kernels.why_missing(backend) is not None:
            continue
        with ops.use_backend(backend):
            for size, group in ((3, None), (2, pair)):
                if rank >= size:
                    continue
                shards = VocabShards(bounds=BOUNDS[size], group=group)
                for from_hidden in (False, True):
                    compare(shards, torch.float32, SETTINGS, MASK, True, from_hidden)
                    compare(shards, torch.float64, PLAIN, None, False, from_hidden)
    dist.barrier()
    dist.destroy_process_group()


def main():
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=work, args=(rank, f"{folder}/store")) for rank in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            if process.exitcode != 0:
                for other in processes:
                    other.kill()
                sys.exit(f"a process ended with {process.exitcode}")
    print("agreed")


if __name__ == "__main__":
    main()
