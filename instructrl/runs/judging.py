"""What is known of a judge: whether a policy was trained against it, which makes its verdicts too good."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from instructrl.evaluation.formatting import listing
from instructrl.runs.folder import CONFIG_FILE


def judge_note(judge: str, policies: Sequence[tuple[str, str]]) -> str:
    """A sentence for those who read the verdicts, "" where no policy was trained against the judge.

    judge: the reward model's folder or name. policies: (name, folder or name) of each model that is judged.
    """
    known = {name: trained_against(policy, judge) for name, policy in policies}
    flattered, unknown = ([name for name, found in known.items() if found is wanted] for wanted in (True, None))
    if flattered:
        return (
            f"The judge is the reward model that {listing(flattered)} was trained against, and flatters it: "
            "`instructrl rm` on other comparisons makes a judge."
        )
    if unknown:
        return f"Whether {listing(unknown)} was trained against this judge is not known; it would flatter what was."
    return ""


def trained_against(policy: str, judge: str) -> bool | None:
    """Whether a policy was trained by PPO against this reward model, as the folder of its run tells; None where no run
    is found, or not the reward model that its settings name."""
    place = Path(policy).resolve()
    run = place.parent.parent
    if place.parent.name != "models" or not (run / CONFIG_FILE).is_file():
        return None
    if not place.name.startswith("ppo") or place.name.startswith("ppo_start"):
        return False
    try:
        settings = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = settings.get("reward_model") if isinstance(settings, dict) else None
    # A run of all steps keeps its reward model beside its policies; a single step names the one that it was given.
    teacher = Path(named) if isinstance(named, str) else run / "models" / "reward_model"
    if teacher.resolve() == Path(judge).resolve():
        return True
    digests = [_digest(folder) for folder in (teacher, Path(judge))]
    return None if None in digests else digests[0] == digests[1]


def _digest(folder: Path) -> str | None:
    """Of the weights in a folder; None where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest() if files else None


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest end of each path, by whole parts, that no other path has."""
    parts = [path.rstrip("/").split("/") for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other is not own]
        lengths = (n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        names.append("/".join(own[-next(lengths, len(own)) :]))
    return names
