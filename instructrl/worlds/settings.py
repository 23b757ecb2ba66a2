"""What a miniature world is made of: its causes, each with a number that turns it off."""

from dataclasses import dataclass, fields

from instructrl.worlds.exam_settings import ExamConfig
from instructrl.worlds.labeler_settings import LabelerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusMix:
    """Shares of the kinds of document (any positive scale), and how often a forum answers what it is asked.

    More transcripts make the few-shot prompt better; more answered posts make the raw prompt better; more rude posts
    make the base model more often harmful; more encyclopedia makes facts better known; more gossip, in which people
    repeat each other, makes models better at taking up the words of a prompt. Rumours come on top of these: as many as
    it takes to tell myths as often as `WorldConfig.myth_ratio` says.
    """

    encyclopedia: float = 0.10
    stories: float = 0.18
    lists: float = 0.06
    spelling: float = 0.04
    chats: float = 0.08
    gossip: float = 0.18
    rude_posts: float = 0.08
    forums: float = 0.12
    transcripts: float = 0.10
    exams: float = 0.16
    answered_share: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0.0:
                raise ValueError(f"{field.name}: found {getattr(self, field.name)}, accepted are shares from 0")
        if self.answered_share > 1.0:
            raise ValueError(f"answered_share: found {self.answered_share}, accepted is 0 to 1")
        if not any(getattr(self, field.name) for field in fields(self) if field.name != "answered_share"):
            raise ValueError("mix: found only shares of 0, accepted is at least one positive share")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """What holds in a world, whatever its seed."""

    # kinds of document in the pretraining corpus
    mix: CorpusMix = CorpusMix()
    # questions that no user asks
    exams: ExamConfig = ExamConfig()
    # share of facts of which nobody knows the truth
    unknown: float = 0.1
    # share of facts about which a false story goes round
    myths: float = 0.25
    # how often a myth is told for each time that the encyclopedia tells the truth
    myth_ratio: float = 3.0
    # exponent of Zipf's law by which the encyclopedia repeats facts; 0 repeats all equally often
    exposure: float = 1.0
    # share of test and validation prompts that ask for tasks which no training text holds
    unseen: float = 0.5
    # share of test prompts that are written as if for a model of plain text
    gpt_style: float = 0.3
    # people who label, demonstrate and judge
    labelers: LabelerConfig = LabelerConfig()
    # users of each source in each split
    users_per_split: int = 200

    def __post_init__(self) -> None:
        if self.users_per_split < 1:
            raise ValueError(f"users_per_split: found {self.users_per_split}, accepted is at least 1")
        for name in ("myth_ratio", "exposure"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted is at least 0")
        for name in ("unknown", "myths", "unseen", "gpt_style"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted is 0 to 1")
        if self.unknown + self.myths > 1.0:
            raise ValueError(f"myths: found {self.myths}, accepted is at most 1 - unknown, {1.0 - self.unknown}")
