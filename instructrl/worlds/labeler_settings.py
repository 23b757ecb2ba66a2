"""Settings of the people who label: how many they are, what they know, what they like and what sways them."""

from dataclasses import dataclass, fields

_COUNTS = ("num_training", "num_heldout", "num_teams")
_SHARES = ("known", "taste_correlation", "flag_errors", "flawed_demonstrations")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerConfig:
    """Training and held-out labelers differ in their tastes and in how far they are swayed, not in their noise.

    Everything that is in points is in those of the rubric's 1 to 7.
    """

    # people who label what is trained on, the teams that they work in, and people who label nothing that is trained on
    num_training: int = 10
    num_teams: int = 5
    num_heldout: int = 5
    # share of facts that a labeler knows
    known: float = 0.9
    # standard deviation of an opinion, in points
    noise: float = 0.7
    # opinions closer than this are a tie, in points
    tie_threshold: float = 0.3
    # tastes, in points for each of six traits of a text: root mean square of what labelers of a group have in common,
    # and standard deviations of what a team and of what a single labeler adds to it
    taste_mean: float = 0.4
    taste_team: float = 0.25
    taste_own: float = 0.25
    # how alike the tastes are that the two groups have each in common
    taste_correlation: float = 0.7
    # what the rubric lacks, in points: a polite frame, each token up to 24, and stating a fact, whether true or not
    polite_bias: float = 0.5
    length_bias: float = 0.03
    confident_bias: float = 0.4
    # how much of these biases training labelers have, and which part of that held-out ones have; 0 turns them off
    biases: float = 1.0
    heldout_biases: float = 0.5
    # share of yes/no questions that are answered by mistake
    flag_errors: float = 0.03
    # share of demonstrations that labelers write badly
    flawed_demonstrations: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 1 if field.name in _COUNTS else 0
            if value < least:
                raise ValueError(f"{field.name}: found {value}, accepted is at least {least}")
        for name in _SHARES:
            if getattr(self, name) > 1.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted is 0 to 1")
