"""A vocabulary split over two and three processes of gloo, and what is refused without any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instructrl.ops import vocab_parallel
from instructrl.ops.vocab_parallel import VocabShards


def test_processes_agree_with_the_whole_vocabulary_in_one_place():
    job = Path(__file__).with_name("vocab_parallel_job.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, job], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip() == "agreed"


@pytest.mark.parametrize("bounds", [(), (0,), (1, 5), (0, 5, 3), (0, 0)])
def test_bounds_that_are_none(bounds):
    with pytest.raises(ValueError, match=r"bounds: found .* accepted are bounds that rise from 0"):
        VocabShards(bounds=bounds)


def test_without_a_process_group():
    logits, tokens = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"vocab_parallel: found no process group, accepted is one by torch\.dist"):
        vocab_parallel.token_logprobs(logits, tokens, shards=VocabShards(bounds=(0, 5)))
