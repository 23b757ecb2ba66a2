"""Public test sets that are not what their suites read."""

from pathlib import Path

from table import Row, text

_SENTENCES = "sets/winogender/all_sentences.tsv"
_HEADER = "sentid\tsentence\n"


def _crows(content: str | bytes):
    def make() -> None:
        Path("sets/crows_pairs").mkdir()
        text("sets/crows_pairs/crows_pairs_anonymized.csv", content)()

    return make


_QUESTIONS = "Type,Question,Best Answer,Correct Answers,Incorrect Answers\nAdversarial,w1 w2,w3,w3; w4,w5"


def _truthfulqa(questions: str, *, judged: str = ""):
    """judged: a row for both judges, where there are any."""

    def make() -> None:
        Path("sets/truthfulqa").mkdir()
        Path("sets/truthfulqa/TruthfulQA.csv").write_text(questions)
        for name in ("truth", "info") if judged else ():
            Path(f"sets/truthfulqa/finetune_{name}.jsonl").write_text(judged)

    return make


_TOXIC = "sets/realtoxicityprompts_subset/toxic.jsonl"
_SCORED = '{"prompt": {"text": "w1", "toxicity": 0.5}, "continuation": {"text": "w2", "toxicity": 0.5}}\n'


def _toxic(content: str):
    def make() -> None:
        Path(_TOXIC).parent.mkdir()
        text(_TOXIC, content)()

    return make


ROWS = [
    Row(
        what="unknown suite",
        step="suites",
        options="--suites winograd",
        message="suites: found 'winograd', accepted are …winogender…",
    ),
    Row(
        what="suite twice",
        step="suites",
        options="--suites winogender winogender=sets/winogender",
        message="suites: found 'winogender' twice, accepted is each suite once",
    ),
    Row(
        what="suite without data",
        options="eval --models model --suites winogender --out new",
        message="suite.data: found nothing, accepted is a folder with a folder winogender of Winogender, or --suites "
        "winogender=FOLDER",
    ),
    Row(
        what="suite whose folder is not there",
        step="suites",
        options="--suites crows_pairs",
        message="sets/crows_pairs: found no folder, accepted is one with crows_pairs_anonymized.csv of CrowS-Pairs",
    ),
    Row(
        what="suite in a folder of something else",
        step="suites",
        options="--suites winogender=splits",
        message="splits/all_sentences.tsv: found no file, accepted is that of Winogender",
    ),
    Row(
        what="suite file with another header",
        step="suites",
        make=text(_SENTENCES, "id\ttext\na.b.0.male.txt\tw1\n"),
        message=f"{_SENTENCES}: found 'id', 'text', accepted is a header with sentid, sentence",
    ),
    Row(
        what="suite row with a cell too many",
        step="suites",
        make=text(_SENTENCES, f"{_HEADER}a.b.0.male.txt\tw1\tw2\n"),
        message=f"{_SENTENCES}, row 1: found 3 cells, accepted are 2",
    ),
    Row(
        what="suite row without a sentence",
        step="suites",
        make=text(_SENTENCES, f"{_HEADER}a.b.0.male.txt\t \n"),
        message=f"{_SENTENCES}, row 1: sentence: found ' ', accepted is a text",
    ),
    Row(
        what="suite file without rows",
        step="suites",
        make=text(_SENTENCES, _HEADER),
        message=f"{_SENTENCES}: found no rows, accepted is at least one",
    ),
    Row(
        what="one sentence of a pair",
        step="suites",
        make=text(_SENTENCES, f"{_HEADER}a.b.0.male.txt\tw1\n"),
        message=f"{_SENTENCES}: found no pair for a.b.0, accepted is a sentence of each of male, female",
    ),
    Row(
        what="suite file in another encoding",
        step="suites",
        options="--suites crows_pairs",
        make=_crows(b"sent_more,sent_less,bias_type\n\xff,b,c\n"),
        message="sets/crows_pairs/crows_pairs_anonymized.csv: found bytes that are not UTF-8, accepted is a text file",
    ),
    Row(
        what="quotation without an end in a suite file",
        step="suites",
        options="--suites crows_pairs",
        make=_crows('sent_more,sent_less,bias_type\na,"b,c\n'),
        message="sets/crows_pairs/crows_pairs_anonymized.csv, row 1: found unexpected end of data, accepted is a table",
    ),
    Row(
        what="suite of which nothing fits the model",
        step="suites",
        make=text(_SENTENCES, _HEADER + "".join(f"a.b.0.{g}.txt\t{'w1 ' * 40}\n" for g in ("male", "female"))),
        message="winogender: found no item whose prompt and answer fit into the 32 positions of model, accepted is a "
        "model with more",
    ),
    Row(
        what="no items of a suite",
        step="suites",
        options="--suite.items 0",
        message="suite.items: found 0, accepted are positive numbers",
    ),
    Row(
        what="neither win rates nor suites",
        options="eval --models model --out new",
        message="--baseline, --reward-model, --data: missing, accepted is all that win rates take, or --suites, or "
        "--lm-eval",
    ),
    Row(
        what="win rates without a judge beside suites",
        step="suites",
        options="--baseline other --data prompts.jsonl",
        message="--reward-model: missing, accepted is all that win rates take",
    ),
    Row(
        what="settings of suites without suites",
        step="eval",
        options="--suite.items 10",
        message="suite.items: found 10, which nothing uses without suites; accepted is both, or neither",
    ),
    Row(
        what="settings of win rates without them",
        step="suites",
        options="--temperature 0",
        message="temperature: found 0.0, which nothing uses without baseline; accepted is both, or neither",
    ),
    Row(
        what="folder of lm-eval's tasks that is not there",
        options="eval --models model --lm-eval own --lm-eval-tasks gone --out new",
        message="lm_eval_tasks: found no folder gone, accepted is one with YAML files of tasks",
    ),
    Row(
        what="no items of lm-eval's tasks",
        options="eval --models model --lm-eval own --lm-eval-limit 0 --out new",
        message="lm_eval_limit: found 0, accepted are positive numbers",
    ),
    Row(
        what="folder of lm-eval's tasks without a name of one",
        step="suites",
        options="--lm-eval-tasks splits",
        message="lm_eval_tasks: found splits, which nothing uses without lm_eval; accepted is both, or neither",
    ),
    Row(
        what="TruthfulQA whose best answer is no correct one",
        step="suites",
        options="--suites truthfulqa",
        make=_truthfulqa(_QUESTIONS.replace("w3; w4", "w4")),
        message="sets/truthfulqa/TruthfulQA.csv, row 1: Best Answer: found 'w3.', accepted is one of the Correct "
        "Answers",
    ),
    Row(
        what="rows for a judge of another form",
        step="suites",
        options="--suites truthfulqa",
        make=_truthfulqa(_QUESTIONS, judged='{"prompt": "Q: w1\\nA: w2\\nTrue:", "completion": "yes"}'),
        message="sets/truthfulqa/finetune_truth.jsonl, row 1: completion: found 'yes', accepted is ' yes' or ' no'",
    ),
    Row(
        what="judges that are not there",
        step="suites",
        options="--suites truthfulqa --suite.judges other",
        make=_truthfulqa(_QUESTIONS),
        message="judges: found no judges.json of judges in other, accepted is train, none, or the folder `judges` that "
        "an earlier evaluation wrote",
    ),
    Row(
        what="base of judges that is not there",
        step="suites",
        options="--suites truthfulqa --suite.judge-base ./nowhere",
        make=_truthfulqa(_QUESTIONS),
        message="model ./nowhere: found no such folder, accepted is a transformers folder or name",
    ),
    Row(
        what="prompt of RealToxicityPrompts whose score is none",
        step="suites",
        make=_toxic(_SCORED + _SCORED.replace("0.5", "1.5")),
        options="--suites realtoxicity",
        message=f"{_TOXIC}, row 2: prompt: toxicity: found 1.5, accepted are numbers from 0 to 1, or null",
    ),
    Row(
        what="prompt of RealToxicityPrompts without what followed it",
        step="suites",
        make=_toxic('{"prompt": {"text": "w1", "toxicity": 0.5}}\n'),
        options="--suites realtoxicity",
        message=f"{_TOXIC}, row 1: continuation: found nothing, accepted is an object with text and toxicity",
    ),
    Row(
        what="too few texts to train what scores toxicity",
        step="suites",
        make=_toxic(_SCORED),
        options="--suites realtoxicity",
        message="realtoxicity: found 1 documents with scores, accepted are at least 20 to train a stand-in from; or "
        "--suite.toxicity perspective or MODULE:FUNCTION",
    ),
    Row(
        what="toxicity by Perspective without a key",
        step="suites",
        make=_toxic(_SCORED),
        options="--suites realtoxicity --suite.toxicity perspective",
        message="suite.toxicity: found perspective without a key, accepted is one in PERSPECTIVE_API_KEY",
    ),
    Row(
        what="toxicity by a function that is not there",
        step="suites",
        make=_toxic(_SCORED),
        options="--suites realtoxicity --suite.toxicity math:toxicity",
        message="suite.toxicity: math:toxicity: found module 'math' has no attribute 'toxicity', accepted is a "
        "function that can be imported",
    ),
]
