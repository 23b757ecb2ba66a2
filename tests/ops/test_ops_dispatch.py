"""The choice of the backend: a toy backend attaches, is chosen, forced, refused and listed."""

import os
import subprocess
import sys

import pytest
import torch

from instructrl import kernels, ops
from instructrl.ops import ranking

OP = "ranking.pairwise_ranking_loss"
SCORES, PREFERRED = torch.tensor([[1.0, 2.0]]), torch.tensor([[[False, True], [False, False]]])
MARK = ranking.RankingLoss(torch.tensor([42.0]), torch.tensor([1]), torch.tensor([1]))


def at_most_two_responses(scores, preferred, *options):
    return None if scores.shape[1] <= 2 else f"found K = {scores.shape[1]}, accepted is at most 2"


@pytest.fixture
def toy():
    implementation = kernels.Implementation(function=lambda *args: MARK, unsupported=at_most_two_responses)
    # Backends of the project come first, so the toy takes the place of one.
    others = kernels._candidates.pop((OP, "cpu"), ())
    kernels.attach("toy", devices=("cpu",), implementations={OP: implementation})
    kernels._candidates[OP, "cpu"] = (implementation,)
    yield
    kernels.detach("toy")
    kernels._candidates[OP, "cpu"] = others


@pytest.mark.usefixtures("toy")
def test_an_attached_backend_is_chosen_where_it_supports_the_inputs():
    assert ranking.pairwise_ranking_loss(SCORES, PREFERRED) is MARK
    three = ranking.pairwise_ranking_loss(torch.zeros(1, 3), torch.ones(1, 3, 3, dtype=torch.bool))
    assert three.num_pairs.tolist() == [6]


@pytest.mark.usefixtures("toy")
def test_reference_can_be_forced_and_the_setting_is_undone():
    with ops.use_backend("reference"):
        assert float(ranking.pairwise_ranking_loss(SCORES, PREFERRED).loss_sum) == pytest.approx(1.3132617)
    assert ranking.pairwise_ranking_loss(SCORES, PREFERRED) is MARK
    ops.use_backend("reference")
    assert ranking.pairwise_ranking_loss(SCORES, PREFERRED) is not MARK
    ops.use_backend(None)
    assert ranking.pairwise_ranking_loss(SCORES, PREFERRED) is MARK


@pytest.mark.usefixtures("toy")
def test_a_forced_backend_raises_where_it_cannot_run():
    with ops.use_backend("toy"):
        assert ranking.pairwise_ranking_loss(SCORES, PREFERRED) is MARK
        with pytest.raises(RuntimeError, match="K = 3, accepted is at most 2"):
            ranking.pairwise_ranking_loss(torch.zeros(1, 3), torch.ones(1, 3, 3, dtype=torch.bool))
        with pytest.raises(RuntimeError, match=r"sampling.sample_tokens.*'toy' does not implement it"):
            ops.sampling.sample_tokens(torch.zeros(1, 3), torch.zeros(1))


@pytest.mark.usefixtures("toy")
def test_usability_lists_every_op_with_every_backend():
    rows = {(row.op, row.backend): row for row in ops.usability()}
    assert len(rows) == len(ops.dispatch.OPS) * 4
    assert rows[OP, "toy"] == (OP, "toy", True, "")
    assert rows["ppo.ppo_loss", "toy"].why_not == "'toy' does not implement it"
    assert all(rows[op, "reference"].usable for op in ops.dispatch.OPS)


def test_unknown_and_missing_backends_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="found 'cuda', accepted are 'native', 'triton', 'reference'"):
        ops.use_backend("cuda")
    monkeypatch.setattr(kernels, "_implementations", {})
    kernels.report_missing("native", "it is not compiled")
    with pytest.raises(RuntimeError, match="'native' cannot run here: it is not compiled"):
        ops.use_backend("native")


@pytest.mark.parametrize(("name", "expected"), [("reference", "tensor([1.3133])"), ("cuda", "ValueError: backend")])
def test_environment_variable(name, expected):
    script = (
        "import torch; from instructrl.ops import ranking\n"
        "print(ranking.pairwise_ranking_loss(torch.tensor([[1., 2.]]), "
        "torch.tensor([[[False, True], [False, False]]])).loss_sum)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "INSTRUCTRL_BACKEND": name}, capture_output=True, text=True
    )
    assert expected in run.stdout + run.stderr


def test_import_of_the_package_does_not_import_torch():
    script = "import sys, instructrl; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
