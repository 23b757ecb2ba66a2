"""The reward model of `instructrl judge`: scores of texts, and what it cannot read."""

from collections.abc import Sequence
from dataclasses import dataclass

from instructrl import distributed
from instructrl.commands.settings import JudgeCommand
from instructrl.data.encoding import Encoder
from instructrl.models.backbone import hide_loading_bars
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import spread_for_use
from instructrl.rollout.scoring import score_texts
from instructrl.runs.standalone import load_encoder, load_judge
from instructrl.types import Conversation, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A reward model that reads an instruction as the message of a user, where its tokenizer has a chat template."""

    name: str
    model: RewardModel
    encoder: Encoder

    @classmethod
    def load(cls, config: JudgeCommand, path: str) -> "Judge":
        """Raises ValueError where the model cannot be loaded, or its context is shorter than the limits."""
        distributed.use(config.device or "auto")
        hide_loading_bars()
        encoder = load_encoder(path, config.limits, config)
        model = load_judge(path, encoder).eval()
        spread_for_use(model, config.weights)
        return cls(name=f"reward model {path.rstrip('/')}", model=model, encoder=encoder)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Of each (instruction, response); None where one of them is longer than the limits."""
        asked = [self._asked(instruction) for instruction, _ in pairs]
        fits = {text: self.encoder.fits(text) for text in dict.fromkeys(asked)}
        places = [
            place
            for place, (text, (_, response)) in enumerate(zip(asked, pairs, strict=True))
            if fits[text] and self.encoder.is_whole(response, prompt=text)
        ]
        found: list[float | None] = [None] * len(pairs)
        if places:
            scores = score_texts(self.model, self.encoder, [asked[i] for i in places], [pairs[i][1] for i in places])
            for place, score in zip(places, scores.tolist(), strict=True):
                found[place] = score
        return found

    def _asked(self, instruction: str) -> str:
        return instruction if self.encoder.chat is None else Conversation([Message("user", instruction)])
