"""What the roles of a PPO step hold: the arithmetic of the benchmark against the tensors that there are."""

from pathlib import Path

import pytest
import torch
from tiny import demonstrations, tiny_encoder
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.scaling import roles
from benchmarks.scaling.iteration import held_bytes
from instructrl.models.policy import Policy
from instructrl.models.roles import learner, on_shared_base
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig, PassConfig
from instructrl.trainers.log import RunLog
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import PPOConfig

ENCODER = tiny_encoder()


def shape(tied: bool) -> roles.Shape:
    vocabulary = len(ENCODER.tokenizer)
    return roles.Shape(layers=2, width=32, hidden=48, key_width=16, vocabulary=vocabulary, tied=tied)


def trainer_of(tied: bool, adapter: AdapterConfig, passes: PassConfig) -> PPOTrainer:
    """Behind an iteration, started from an adapter where there are any, as after SFT."""
    sizes = shape(tied)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    policy = Policy(LlamaForCausalLM(config)).eval()
    on_shared_base(policy, adapter)
    policy = learner(policy, adapter)
    if adapter.rank is not None:  # one that adds nothing is left out of the reference
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.01)
    settings = PPOConfig(num_episodes=4, rollout_batch=4, minibatch=4, passes=passes)
    judge = RewardModel.from_policy(policy, torch.Generator().manual_seed(0)).eval()
    trainer = PPOTrainer(policy, judge, [row.prompt for row in demonstrations(4)], ENCODER, settings)
    trainer.run(RunLog(None))
    return trainer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arithmetic_is_what_the_tensors_add_up_to(tied, dtype):
    trainer = trainer_of(tied, AdapterConfig(), PassConfig(weights=dtype))
    assert held_bytes(trainer) == sum(roles.full(shape(tied), dtype).values())
    adapter = AdapterConfig(rank=3, base_dtype=dtype)
    trainer = trainer_of(tied, adapter, PassConfig())
    assert held_bytes(trainer) == sum(roles.shared(shape(tied), dtype, 3).values())


@pytest.mark.parametrize(
    ("network", "dtype", "most"),
    [("135M (SmolLM2)", "float32", 1.45), ("135M (SmolLM2)", "bfloat16", 1.85), ("7B (Llama 2)", "bfloat16", 1.15)],
)
def test_roles_on_a_base_take_little_beside_it(network, dtype, most):
    sizes = roles.SHAPES[network]
    assert roles.times_the_base(sizes, dtype, roles.shared(sizes, dtype, 16)) <= most
    assert roles.times_the_base(sizes, dtype, roles.full(sizes, dtype)) > 10


def test_shapes_have_the_parameters_of_their_models():
    counts = {name: sizes.language_model for name, sizes in roles.SHAPES.items()}
    assert counts == {
        "135M (SmolLM2)": 134_515_008,
        "1B (Llama 3.2)": 1_235_814_400,
        "7B (Llama 2)": 6_738_415_616,
        "70B (Llama 3.1)": 70_553_706_496,
    }


def test_the_page_has_the_table():
    page = (Path(__file__).parent.parent / "docs" / "memory.md").read_text(encoding="utf-8")
    assert page.partition("<!-- roles:begin -->\n")[2].partition("<!-- roles:end -->")[0] == roles.table(16)
