"""What generated instructions are made of: tasks, subjects, and each kind's parameters and wordings. All our own."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of instruction, under IFEval's name.

    Args:
        wordings: texts with the parameters' names in braces.
        parameters: name -> what to draw from.
    """

    wordings: Sequence[str]
    parameters: Mapping[str, Sequence[Any]] = {}


TASKS = (
    "Write a short story about {subject}",
    "Write a poem about {subject}",
    "Write a letter to a friend about {subject}",
    "Write a product description inspired by {subject}",
    "Write a speech for a school assembly about {subject}",
    "Write a dialogue between two neighbours who talk about {subject}",
    "Write a review by somebody who was disappointed by {subject}",
    "Write a job advertisement that has to do with {subject}",
    "Write a diary entry by a child who discovers {subject}",
    "Explain {subject} to a ten-year-old",
    "Explain to a colleague why {subject} might matter in the next decade",
    "Describe {subject} for a travel guide",
    "List ideas for a club that is devoted to {subject}",
    "List questions that a journalist could ask about {subject}",
    "List common mistakes that beginners make with {subject}",
    "Compare what two generations think of {subject}",
    "Summarise what everybody should know about {subject}",
    "Give advice to somebody who is afraid of {subject}",
    "Make a plan for a weekend that is all about {subject}",
    "Invent a riddle whose solution is {subject}",
    'Rewrite "I learnt something new about {subject} today" as a pirate would say it',
    'Put "Nobody warned me about {subject}" into the style of an old newspaper',
    'Turn "We need to talk about {subject}" into a formal announcement',
)
SUBJECTS = (
    "lighthouses", "beekeeping", "night trains", "sourdough bread", "the tides", "chess clocks", "glaciers",
    "public libraries", "origami", "volcanoes", "second-hand bicycles", "mushrooms", "the invention of paper",
    "rooftop gardens", "street musicians", "lost luggage", "migrating birds", "jigsaw puzzles", "coral reefs",
    "accordion music", "postage stamps", "solar eclipses", "vegetable soup", "desert foxes", "old maps",
    "ferry boats", "snow shovels", "the number zero", "hot-air balloons", "mirrors", "a broken elevator",
    "school lunches", "telescopes", "traffic lights", "tea ceremonies", "windmills", "a flooded cellar",
    "thunderstorms", "marathon running", "sign language", "submarines", "a village fair", "crossword puzzles",
    "honey badgers", "recycled glass", "morning fog", "an empty theatre", "kite flying", "pottery",
    "a stubborn donkey", "chimney sweeps", "the colour blue", "carnivorous plants", "bus timetables",
    "antique clocks", "juggling", "underground caves", "pancakes",
)  # fmt: skip
QUESTIONS = (
    "Would you rather live beside {subject} than in the middle of a city?",
    "Could one write a whole book about {subject}?",
    "Is it a good idea to begin a conversation with {subject}?",
    "Should children learn about {subject} at school?",
)
WANTED_WORDS = (
    "river", "morning", "promise", "quiet", "window", "journey", "garden", "season", "bridge", "careful",
    "letter", "market", "shadow", "simple", "travel", "winter", "bright", "corner", "forest", "island",
    "kitchen", "memory", "pocket", "silver",
)  # fmt: skip
UNWANTED_WORDS = (
    "very", "always", "people", "because", "little", "great", "thing", "every", "never", "world", "small",
    "time", "better", "almost", "really", "other", "maybe", "good", "many", "often", "just", "long", "about",
    "important",
)  # fmt: skip
LANGUAGES = {
    "de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "pt": "Portuguese", "ru": "Russian",
    "fi": "Finnish", "pl": "Polish", "hi": "Hindi", "ko": "Korean", "vi": "Vietnamese", "sw": "Swahili",
    "ar": "Arabic", "bg": "Bulgarian",
}  # fmt: skip
ENDINGS = (
    "That is all that I know of it.", "Thank you for reading this far.", "Now it is your turn.",
    "And so the day ended.", "What would you do?", "Let me know how it goes.", "This is only the beginning.",
    "Nothing more needs to be said.",
)  # fmt: skip
_RELATIONS = ("at least", "less than")

KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind(
        (
            "Include the words {keywords}.",
            "Make sure that these words occur: {keywords}.",
            "Use the keywords {keywords}.",
        ),
        {"keywords": WANTED_WORDS},
    ),
    "keywords:frequency": Kind(
        (
            "The word {keyword} should appear {relation} {frequency} times.",
            'Use "{keyword}" {relation} {frequency} times.',
            "Let {keyword} occur {relation} {frequency} times in your response.",
        ),
        {"keyword": WANTED_WORDS, "relation": _RELATIONS, "frequency": range(2, 6)},
    ),
    "keywords:forbidden_words": Kind(
        (
            "Do not use the words {forbidden_words}.",
            "Avoid these words: {forbidden_words}.",
            "Leave out {forbidden_words}.",
        ),
        {"forbidden_words": UNWANTED_WORDS},
    ),
    "keywords:letter_frequency": Kind(
        (
            "The letter {letter} should appear {let_relation} {let_frequency} times.",
            "Use the letter {letter} {let_relation} {let_frequency} times.",
        ),
        {"letter": "bcdfghjkmpqvwxyz", "let_relation": _RELATIONS, "let_frequency": range(3, 11)},
    ),
    "language:response_language": Kind(
        (
            "Answer in {language}; no other language is allowed.",
            "Your entire response should be in {language}.",
            "Write all of it in {language}.",
        ),
        {"language": tuple(LANGUAGES)},
    ),
    "length_constraints:number_sentences": Kind(
        (
            "Use {relation} {num_sentences} sentences.",
            "Your response should contain {relation} {num_sentences} sentences.",
        ),
        {"relation": _RELATIONS, "num_sentences": range(3, 16)},
    ),
    "length_constraints:number_paragraphs": Kind(
        (
            "Write {num_paragraphs} paragraphs, separated by the markdown divider ***.",
            "There should be exactly {num_paragraphs} paragraphs, with *** between one and the next.",
        ),
        {"num_paragraphs": range(2, 7)},
    ),
    "length_constraints:number_words": Kind(
        (
            "Answer with {relation} {num_words} words.",
            "Use {relation} {num_words} words.",
            "The response should have {relation} {num_words} words.",
        ),
        {"relation": _RELATIONS, "num_words": range(40, 301, 10)},
    ),
    "length_constraints:nth_paragraph_first_word": Kind(
        (
            "Separate {num_paragraphs} paragraphs by empty lines. Number {nth_paragraph} starts with {first_word}.",
            "Write {num_paragraphs} paragraphs, an empty line between. Begin number {nth_paragraph} with {first_word}.",
        ),
        {"num_paragraphs": range(2, 6), "nth_paragraph": range(1, 3), "first_word": WANTED_WORDS},
    ),
    "detectable_content:number_placeholders": Kind(
        (
            "Include at least {num_placeholders} placeholders in square brackets, such as [name].",
            "Leave at least {num_placeholders} gaps to fill in, written in square brackets like [date].",
        ),
        {"num_placeholders": range(2, 7)},
    ),
    "detectable_content:postscript": Kind(
        (
            'At the end, add a postscript that starts with "{postscript_marker}".',
            'Finish with a postscript, introduced by "{postscript_marker}".',
        ),
        {"postscript_marker": ("P.S.", "P.P.S")},
    ),
    "detectable_format:number_bullet_lists": Kind(
        (
            "Use exactly {num_bullets} bullet points in markdown, such as * This is a point.",
            "Your response must contain exactly {num_bullets} bullet points, each on a line after an asterisk.",
        ),
        {"num_bullets": range(2, 7)},
    ),
    "detectable_format:constrained_response": Kind(
        (
            'Answer with exactly one of "My answer is yes.", "My answer is no.", "My answer is maybe."',
            "Choose one of these: My answer is yes. My answer is no. My answer is maybe.",
        )
    ),
    "detectable_format:number_highlighted_sections": Kind(
        (
            "Highlight at least {num_highlights} parts with markdown, i.e. *highlighted part*.",
            "Put at least {num_highlights} phrases in italics, as markdown does it: *like this*.",
        ),
        {"num_highlights": range(2, 6)},
    ),
    "detectable_format:multiple_sections": Kind(
        (
            "Divide it into {num_sections} sections, each of which begins like this: {section_spliter} 1",
            "It must have {num_sections} sections. Mark them {section_spliter} 1, {section_spliter} 2 and so on.",
        ),
        {"section_spliter": ("Section", "SECTION"), "num_sections": range(2, 6)},
    ),
    "detectable_format:json_format": Kind(
        ("Give the whole output as JSON.", "Wrap everything in one JSON object; markdown ticks such as ``` are fine.")
    ),
    "detectable_format:title": Kind(
        (
            "Add a title in double angular brackets, such as <<a walk in the rain>>.",
            "It needs a title, wrapped in double angular brackets: <<title>>.",
        )
    ),
    "combination:two_responses": Kind(
        (
            "Give two different responses, with nothing but six asterisks between them: ******.",
            "I want two different answers, separated by six asterisk symbols (******) and by nothing else.",
        )
    ),
    "combination:repeat_prompt": Kind(
        (
            "Before you answer, repeat the request above word for word, but not this sentence. Begin with it.",
            "First repeat everything above this line word for word, then answer it.",
        ),
        {"prompt_to_repeat": ()},
    ),
    "startend:end_checker": Kind(
        ("End with this exact phrase: {end_phrase}", "The very last words must be: {end_phrase}"),
        {"end_phrase": ENDINGS},
    ),
    "startend:quotation": Kind(
        (
            "Wrap the whole response in double quotation marks.",
            "Put double quotation marks around your entire response.",
        )
    ),
    "change_case:capital_word_frequency": Kind(
        (
            "Words in all capital letters should appear {capital_relation} {capital_frequency} times.",
            "Use {capital_relation} {capital_frequency} words in all capital letters.",
        ),
        {"capital_relation": _RELATIONS, "capital_frequency": range(3, 13)},
    ),
    "change_case:english_capital": Kind(
        ("Answer in English and in capital letters only.", "Write everything in capital letters, in English.")
    ),
    "change_case:english_lowercase": Kind(
        (
            "Answer in English and in lowercase letters only; no capital letters are allowed.",
            "Write everything in lowercase, in English, without a single capital letter.",
        )
    ),
    "punctuation:no_comma": Kind(
        ("Do not use any commas.", "Refrain from commas altogether.", "There must be no comma in your response.")
    ),
}

_ALONE = "detectable_format:constrained_response"
_ONLY_WITH: Mapping[str, set[str]] = {
    _ALONE: set(),
    "detectable_format:json_format": {"keywords:existence", "keywords:forbidden_words"},
    "combination:two_responses": {
        "keywords:existence", "keywords:forbidden_words", "language:response_language", "detectable_format:title",
        "punctuation:no_comma",
    },
    "combination:repeat_prompt": {"keywords:existence", "detectable_format:title"},
}  # fmt: skip
_PAIRS = (
    ("language:response_language", "detectable_format:multiple_sections"),
    ("language:response_language", "keywords:existence"),
    ("language:response_language", "keywords:frequency"),
    ("language:response_language", "keywords:forbidden_words"),
    ("language:response_language", "startend:end_checker"),
    ("language:response_language", "change_case:english_capital"),
    ("language:response_language", "change_case:english_lowercase"),
    ("language:response_language", "keywords:letter_frequency"),
    ("language:response_language", "length_constraints:nth_paragraph_first_word"),
    ("language:response_language", "detectable_content:postscript"),
    ("length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word"),
    ("length_constraints:number_paragraphs", "length_constraints:number_sentences"),
    ("length_constraints:number_words", "length_constraints:number_sentences"),
    ("length_constraints:nth_paragraph_first_word", "detectable_format:title"),
    ("detectable_format:multiple_sections", "detectable_format:number_highlighted_sections"),
    ("detectable_format:multiple_sections", "change_case:english_capital"),
    ("detectable_format:multiple_sections", "change_case:english_lowercase"),
    ("change_case:capital_word_frequency", "change_case:english_capital"),
    ("change_case:capital_word_frequency", "change_case:english_lowercase"),
    ("change_case:english_capital", "change_case:english_lowercase"),
    ("startend:quotation", "detectable_format:title"),
    ("startend:end_checker", "detectable_content:postscript"),
)


def conflict(one: str, other: str) -> bool:
    """Say whether two kinds cannot stand in one prompt: lm-eval's conflicts, and pairs that no answer could satisfy.

    >>> conflict("startend:quotation", "detectable_format:title")
    True
    """
    if one == other or (one, other) in _PAIRS or (other, one) in _PAIRS:
        return True
    return any(kind in _ONLY_WITH and mate not in _ONLY_WITH[kind] for kind, mate in ((one, other), (other, one)))
