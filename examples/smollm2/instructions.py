"""Three kinds of simple instruction, and the reward that checks by rules whether a completion follows them.

    python instructions.py train > train.jsonl
    python instructions.py test > test.jsonl

The topics of the test are others than those of the training. A completion earns 1 when it is one whole sentence that
names the topic and does what was asked, else 0: neither a sentence that fits everything, nor one that is cut, nor the
instruction repeated earns anything.
"""

import json
import random
import re
import sys
from typing import Any

TRAIN = (
    "apples bakeries bears beaches bees bicycles birds boats books bread bridges buses cameras candles castles cats "
    "chairs cheese chess clocks clouds coats coffee computers cows deserts doctors dogs dolphins doors dragons eagles "
    "elephants engines farms fire fish flowers football forests foxes friends frogs games gardens glass gold guitars "
    "hats hills honey horses hospitals hotels houses ice islands jackets kitchens kites knives lakes lamps"
).split()
TEST = (
    "letters libraries lions maps markets milk mirrors money monkeys mountains museums music nurses oceans onions "
    "oranges owls paintings parks pencils pianos planes plants poems potatoes rabbits radios rain rivers roads "
    "robots roses salt schools ships shoes silk singers sleep snow soap soup spiders stars stones storms students "
    "sugar summer tables teachers tea theatres tigers towers trains trees turtles umbrellas villages violins "
    "walls water weddings whales wheat wind windows winter wolves wood wool zebras"
).split()
WORDS = "always because before favourite morning never often people quiet simple together world".split()
KINDS = ("short", "word", "comma")


def make(topics: list[str], seed: int) -> list[dict[str, Any]]:
    """Return problems of all kinds on all topics, in random order, each with what the reward must know."""
    rng = random.Random(seed)
    rows = []
    for topic in topics:
        for kind in KINDS:
            for word in rng.sample(WORDS, 4 if kind == "word" else 1):
                ask = {
                    "short": f"Describe {topic} in fewer than 10 words.",
                    "word": f"Use the word {word} in a sentence about {topic}.",
                    "comma": f"Write one sentence about {topic}. Do not use commas.",
                }[kind]
                rows.append({"prompt": [{"role": "user", "content": ask}], "kind": kind, "topic": topic, "word": word})
    unique = {row["prompt"][0]["content"]: row for row in rows}
    return rng.sample(list(unique.values()), len(unique))


def follows(completions: list[str], kind: list[str], topic: list[str], word: list[str], **_: Any) -> list[float]:
    """Give 1 to each completion that follows its instruction, else 0."""
    return [float(_follows(*row)) for row in zip(completions, kind, topic, word, strict=True)]


def _follows(completion: str, kind: str, topic: str, word: str) -> bool:
    text = completion.strip()
    words = re.findall(r"[a-z']+", text.lower())
    one_sentence = re.fullmatch(r"[^.!?]+[.!?]", text) is not None and len(words) >= 4
    repeats = {"sentence", "word", "words", "comma", "commas"} & set(words)  # parts of the instruction
    if not one_sentence or repeats or topic[:4] not in text.lower():
        return False
    return {"short": len(words) < 10, "word": word in words, "comma": "," not in text}[kind]


if __name__ == "__main__":
    for problem in make(TRAIN if sys.argv[1] == "train" else TEST, seed=0):
        print(json.dumps(problem))
