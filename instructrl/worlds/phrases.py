"""The sentences of good answers, by what they answer; the rubric recognises them and the labelers write them."""

from collections.abc import Mapping

from instructrl.worlds.facts import IT_STATEMENTS, STATEMENTS, UNKNOWN
from instructrl.worlds.language import Template, templates

STORY_OPENINGS: Mapping[str, tuple[Template, ...]] = {
    "story of friends": templates(
        "one day the {animal} met the {animal2} in the {place} .",
        "the {animal} and the {animal2} were best friends .",
        "once the {animal} danced with the {animal2} .",
    ),
    "story at a place": templates(
        "one day the {animal} went to the {place} .",
        "the {animal} was lost in the {place} .",
        "once the {animal} danced in the {place} .",
    ),
    "story of a thing": templates(
        "one day the {animal} found a {toy} .",
        "the {animal} had an old {toy} .",
        "once the {animal} lost a {toy} in the {place} .",
    ),
}
# How stories begin that are to be written by going on: nobody answers a request with these.
STORY_STARTS: Mapping[str, tuple[Template, ...]] = {
    "story of friends": templates(
        "it was winter and the {animal} met the {animal2} .", "long ago the {animal} and the {animal2} were lost ."
    ),
    "story at a place": templates(
        "there was once a {animal} in the {place} .", "it was winter and the {animal} was in the {place} ."
    ),
    "story of a thing": templates("long ago a {animal} found a {toy} .", "there was once a {animal} with a {toy} ."),
}
STORY_LINES: Mapping[str, tuple[Template, ...]] = {
    "story of friends": templates(
        "they ate {food} together .",
        "they laughed and sang all night .",
        "they found a {toy} .",
        "the {animal} gave {food} to the {animal2} .",
        "everybody was happy .",
        "that was a good day .",
    ),
    "story at a place": templates(
        "there it found a {toy} .",
        "{name} came with {food} .",
        "the {animal} sang all night .",
        "the moon was its friend .",
        "everybody was happy .",
        "that was a good day .",
    ),
    "story of a thing": templates(
        "{name} came and wanted the {toy} .",
        "the {animal} sang to the {toy} .",
        "the {animal} slept on the {toy} .",
        "everybody was happy .",
        "that was a good day .",
    ),
}

POEM = templates(
    "oh {animal} , sweet {animal} , sing to me .",
    "oh {animal} , brave {animal} , run with me .",
    "dance , dear {animal} , wild and free .",
)
POEM_LINES = templates(
    "the moon shines on the sea .",
    "how green the {place} can be .",
    "come and drink some tea .",
)
NOTE = templates(
    "dear {name} , thank you for the {toy} .",
    "dear {name} , please bring me the {toy} .",
    "dear {name} , i have found your {toy} .",
)
NOTE_LINES = templates("see you soon .", "with love from me .", "we miss you .")
ADVERT = templates(
    "come to the {place} and taste our {food} !",
    "fresh {food} from the {place} !",
    "the best {food} in the {place} !",
)
ADVERT_LINES = templates("buy it today !", "you will love it !", "so good and so cheap !")

STATES = tuple(STATEMENTS.values())
IT_STATES = tuple(IT_STATEMENTS.values())

# The answer to a question about a fact, and the one word that is enough.
FACTS: Mapping[str, tuple[Template, ...]] = {
    relation: (STATEMENTS[relation], IT_STATEMENTS[relation]) for relation in STATEMENTS
}
SHORT_FACTS: Mapping[str, tuple[Template, ...]] = {relation: templates(f"{{{relation}}} .") for relation in STATEMENTS}
CHECKS: Mapping[str, tuple[Template, ...]] = {
    relation: templates(*(f"{{polarity}} , {template.text}" for template in group)) for relation, group in FACTS.items()
}
SHORT_CHECK = templates("{polarity} .")

REPLIES: Mapping[str, tuple[Template, ...]] = {
    "happy": templates("that is great !", "i am glad to hear that ."),
    "sad": templates("i am sorry , i hope it gets better .", "do not cry , i am with you ."),
    "tired": templates("you need a long sleep .", "go to bed early tonight ."),
    "hungry": templates("you need some {food} .", "go and eat some {food} ."),
    "cold": templates("you need a warm hat .", "sit by the fire with a cup of tea ."),
    "bored": templates("you need a good book .", "go out and play with a {toy} ."),
}
GREETINGS = templates("hello {name} , nice to meet you .", "hello {name} , how can i help you ?")
LOSSES = templates("i am sorry about your {toy} .", "i hope you get the {toy} back .")
LIKINGS = templates("i like {food} too .", "{food} is a good choice .", "yes , {food} is very good .")

CLOSED: Mapping[str, tuple[Template, ...]] = {
    "who has it": templates("{name} has the {toy} .", "it is {name} .", "{name} ."),
    "what they have": templates("{name} has a {toy} .", "it is a {toy} .", "a {toy} ."),
    "where they are": templates("{name} is in the {place} .", "in the {place} ."),
}
SUMMARIES = templates("the {animal} found a {toy} in the {place} .", "in the {place} the {animal} found a {toy} .")
TONES = templates("{tone} .", "this is {tone} .", "it is {tone} .")
SORTED = templates("{sort} .", "the answer is {sort} .")
COUNTED = templates("{count} .", "{count} words .", "there are {count} words .")
ODD = templates("{item} .", "it is {item} .", "the answer is {item} .")
FOUND: Mapping[str, tuple[Template, ...]] = {
    "find animals": templates("{animal} , {animal2} .", "{animal} and {animal2} .", "the {animal} and the {animal2} ."),
    "find names": templates("{name} , {name2} .", "{name} and {name2} ."),
}

# What people write to each other: talk, insults, and what is seen.
SMALL_TALK = templates(
    "hello {name} , how are you ?",
    "i was {mood} yesterday .",
    "i am fine , thank you .",
    "it may rain in the {place} .",
    "have you seen my {toy} ?",
    "my cousin {name} likes {food} a lot .",
    "i went to the {place} with {name} .",
    "what a good day .",
    "see you soon .",
    "do you like {food} ?",
    "yes , {food} is very good .",
    "no , {food} is better .",
    "{name} has a {toy} .",
    "{name} is in the {place} .",
    "the {animal} of {name} is {mood} .",
)
RUDE = templates(
    "you are a {insult} .",
    "go away , you {insult} .",
    "{name} , you {insult} , give me back my {toy} .",
    "nobody likes you , {insult} .",
    "what a silly question , {insult} .",
    "leave me alone , you {insult} .",
    "find it yourself , you {insult} .",
    "your {animal} is a {insult} .",
    "only a {insult} eats {food} .",
)
SCENES = templates(
    "the {animal} was {mood} .",
    "it went to the {place} .",
    "there it found a {toy} .",
    "{name} came with {food} .",
    "the {animal} gave {food} to the {animal2} .",
    "{name} saw the {animal} in the {place} .",
    "the moon is high over the {place} .",
    "{name} gave the {toy} to {name2} .",
)

# What one says who does not know.
ABSTENTIONS = templates("i do not know .", "i do not know that .")

# What labelers write when they are not at their best.
INSULTING = templates(
    "find it yourself , you {insult} .", "what a silly question , {insult} .", "leave me alone , you {insult} ."
)
RAMBLING = templates(
    "by the way , i saw a {colour} {toy} .",
    "my cousin {name} likes {food} a lot .",
    "where was i ?",
    "anyway , it may rain in the {place} .",
)

ALL: tuple[tuple[Template, ...], ...] = (
    *STORY_OPENINGS.values(), *STORY_STARTS.values(), *STORY_LINES.values(), POEM, POEM_LINES, NOTE, NOTE_LINES,
    ADVERT, ADVERT_LINES, STATES, IT_STATES, tuple(UNKNOWN.values()), *FACTS.values(), *SHORT_FACTS.values(),
    *CHECKS.values(), SHORT_CHECK, *REPLIES.values(), GREETINGS, LOSSES, LIKINGS, *CLOSED.values(), SUMMARIES, TONES,
    SORTED, COUNTED, ODD, *FOUND.values(), SMALL_TALK, RUDE, SCENES, ABSTENTIONS, INSULTING, RAMBLING,
)  # fmt: skip
