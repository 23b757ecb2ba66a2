"""Keyed random numbers: uniform, and a function of their key alone."""

import math

import pytest
import torch

from instructrl.rollout.randomness import keyed_generator, keyed_seed, keyed_uniforms

EPISODES, POSITIONS = 400, 250
NUM = EPISODES * POSITIONS
# Five standard deviations: a right generator fails such a bound once in two million seeds.
SIGMAS = 5


@pytest.fixture(scope="module")
def uniforms() -> torch.Tensor:
    return keyed_uniforms(3, torch.arange(EPISODES), POSITIONS)


def splitmix(x: int) -> int:
    """splitmix64 with Python's integers, as Steele, Lea and Flood print it."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_mixing_is_splitmix64():
    # The first outputs of the published generator for state 1234567.
    states = [(1234567 + i * 0x9E3779B97F4A7C15) % 2**64 for i in range(3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix(state) for state in states] == expected


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1])
def test_numbers_are_a_function_of_the_key_alone(seed):
    """Equal to plain integer arithmetic, hence the same in every process and on every machine."""
    episodes = [0, 1, 17, 2**40]
    expected = [
        [(splitmix(splitmix(splitmix(seed % 2**64) ^ episode) ^ position) >> 40) / 2**24 for position in range(4)]
        for episode in episodes
    ]
    assert keyed_uniforms(seed, torch.tensor(episodes), 4).tolist() == expected


def test_range_mean_and_variance(uniforms):
    assert uniforms.dtype == torch.float32
    assert 0 <= float(uniforms.min()) < float(uniforms.max()) < 1
    centred = uniforms.double() - 0.5
    # Uniform numbers have variance 1/12, and (u - 1/2)^2 has variance 1/80 - 1/144 = 1/180.
    assert abs(float(centred.mean())) <= SIGMAS * math.sqrt(1 / 12 / NUM)
    assert abs(float(centred.square().mean()) - 1 / 12) <= SIGMAS * math.sqrt(1 / 180 / NUM)


@pytest.mark.parametrize("axis", [0, 1])
def test_neighbours_are_uncorrelated(uniforms, axis):
    centred = (uniforms.double() - 0.5) * math.sqrt(12)
    size = centred.shape[axis] - 1
    products = centred.narrow(axis, 0, size) * centred.narrow(axis, 1, size)
    assert abs(float(products.mean())) <= SIGMAS / math.sqrt(products.numel())


def test_neighbouring_seeds_are_uncorrelated(uniforms):
    other = keyed_uniforms(4, torch.arange(EPISODES), POSITIONS)
    products = (uniforms.double() - 0.5) * (other.double() - 0.5) * 12
    assert abs(float(products.mean())) <= SIGMAS / math.sqrt(NUM)


def test_the_composition_of_the_batch_does_not_matter(uniforms):
    chosen = torch.tensor([9, 2, 250])
    assert torch.equal(keyed_uniforms(3, chosen, 7), uniforms[chosen, :7])


def test_every_part_of_the_key_matters(uniforms):
    assert not torch.equal(keyed_uniforms(4, torch.arange(3), 5), uniforms[:3, :5])
    assert len({tuple(row) for row in uniforms.tolist()}) == EPISODES
    assert len({tuple(row) for row in uniforms.T.tolist()}) == POSITIONS
    # Seed and episode do not stand in for each other.
    assert not torch.equal(keyed_uniforms(2, torch.tensor([1]), 5), keyed_uniforms(1, torch.tensor([2]), 5))


def test_keyed_seeds_differ_by_every_part_and_order():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, -1), (2**63 - 1, 3)]
    seeds = [keyed_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert keyed_seed(0, 1) == splitmix(splitmix(0) ^ 1) >> 1


def test_keyed_generators_start_where_their_key_says():
    first, again = (torch.rand(4, generator=keyed_generator(5, 6)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(4, generator=keyed_generator(5, 7)))


def test_torchs_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    keyed_uniforms(0, torch.arange(3), 3)
    keyed_generator(0, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
