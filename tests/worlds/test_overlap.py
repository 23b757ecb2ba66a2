"""What training text holds of held-out prompts, against plain search; and a corpus that holds none of them."""

from tiny_runs import MINIATURE

from instructrl.data.encoding import Encoder
from instructrl.data.tokenizers import word_tokenizer
from instructrl.runs import miniature_data
from instructrl.runs.journal import Journal
from instructrl.runs.settings import SMOKE
from instructrl.runs.steps import Workspace
from instructrl.trainers.checkpoints import CheckpointConfig
from instructrl.trainers.log import RunLog
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.overlap import Quotes, num_known_tasks

WORLD = MiniatureWorld(3)
PROMPTS = [prompt.text for prompt in WORLD.prompts("test", 300)]


def standing(prompts, text: str) -> set[str]:
    return {prompt for prompt in prompts if f" {prompt} " in f" {text} "}


def test_prompts_in_documents_are_found_as_by_plain_search():
    texts = [document.text for document in WORLD.documents(2000, 0)]
    quotes = Quotes(PROMPTS)
    expected = [standing(PROMPTS, text) for text in texts]
    assert [quotes.found_in([text]) for text in texts] == expected
    assert [quotes.stand_in(text) for text in texts] == [bool(found) for found in expected]
    assert 10 < sum(map(bool, expected)) < 1800


def test_a_prompt_is_not_found_inside_of_words():
    quotes = Quotes(["list two", "list two foods"])
    assert quotes.found_in(["alist two", "list twofold", "list two foods", "x list two y"]) == {
        "list two",
        "list two foods",
    }
    assert not quotes.stand_in("alist two") and not quotes.stand_in("list twofold")  # noqa: PT018


def test_a_corpus_can_go_without_prompts_and_keeps_its_mix():
    plain, without = WORLD.documents(2000, 0), WORLD.documents(2000, 0, without=PROMPTS)
    assert not Quotes(PROMPTS).found_in(document.text for document in without)
    shares = [sum(document.source == "transcripts" for document in rows) / 2000 for rows in (plain, without)]
    assert abs(shares[0] - shares[1]) < 0.05  # five deviations; left out and not replaced it would be 0.06 less


def test_the_same_task_in_other_words_is_known():
    training = ["list two foods ."]
    assert num_known_tasks(["list two foods . end with thanks ."], training) == 1
    assert num_known_tasks(["list three foods .", "list two toys ."], training) == 0


def test_no_training_set_of_the_miniature_holds_a_prompt_of_held_out_users(tmp_path):
    """Its own prompts and documents, in the sizes of the short run; and the rule for prefixes finds some."""
    config = SMOKE
    world = MiniatureWorld(config.seed)
    log = RunLog(tmp_path)
    work = Workspace(
        folder=tmp_path,
        log=log,
        encoder=Encoder(word_tokenizer(world.vocabulary()), config.recipe.limits),
        recipe=config.recipe,
        seed=config.seed,
        config={},
        journal=Journal(tmp_path, log, CheckpointConfig()),
    )
    sets, data = miniature_data.collect_prompts(world, work, config.amounts)
    held_out = sets.of_held_out_users()
    documents = world.documents(config.amounts.documents, seed=0, without=held_out)
    demonstrations = world.demonstrations(sets.sft)
    verbatim, unseen, leaked, known = miniature_data.overlap(world, documents, demonstrations, sets)
    text = [*(document.text for document in documents), world.few_shot_prompt("")]
    assert not [found for one in text[::10] + text[-1:] if (found := standing(held_out, one))]
    assert verbatim["count"] == unseen["count"] == leaked["count"] == 0
    assert 0.3 * config.amounts.test < unseen["total"] < 0.6 * config.amounts.test
    assert not {prompt.text for prompt in (*sets.sft, *sets.comparisons, *sets.ppo)} & set(held_out)
    assert 0 < known["count"] < known["total"] == config.amounts.test
    duplicates = [row for row in data["hygiene"] if "duplicates" in row["step"]]
    assert sum(row["reasons"].get("common prefix", 0) for row in duplicates) > 0
    assert MINIATURE.recipe.ppo.missing_eos_score is None
