"""Where a completion states its final answer, and which number or words it gives there."""

import itertools
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from esalign.rewards.number import Found, Number, find_numbers, read_number
from esalign.rewards.plain import plain

Place = Literal["box", "stated", "text"]

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BRACES = re.compile(r"\\boxed\s*\{|\\boxed\s+(?P<bare>[^\s{}$]+)|[{}]")
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_STATED = re.compile(
    r"(?i)\banswers?[*_`]*\s*(?:(?:to|of|for)\s[^.:\n]{1,60}?\s)?"
    r"(?:is|are|was|equals|(?:would|should|must|will)\s+be|[:=])[ \t*_`:]*"
)
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?;](?=[\s\"')*]|$)|\n")
_SEVERAL = re.compile(r"\\begin\s*\{\w*matrix|\\\{[^}]*,")
_SPACED_END = re.compile(r"\s+([.!?])(?=\s|$)")
_TELLS = re.compile(
    r"(?i)(?:\b(?:is|are|was|were|be|equals|therefore|thus|hence|so|(?:it|that|this|which|there)['’]s)\b[:,]?|:)\s+"
)
_CLAUSE_END = re.compile(r",\s|;|:\s|\s\(")
_REMARK = re.compile(r"(?<=\S)\s+\([^()]*\)")
_REASON = re.compile(r"(?i),?\s(?:because|since|as there|given that|not|rather than|instead of|as opposed to)\b")
_NOTHING_YET = re.compile(r"(?i)\W*(?:below|as follows|the following|approx|rs|no|given by|this|here)?\W*")
_LEAD_IN = re.compile(
    r"(?i)(?:\W|about|approximately|around|roughly|exactly|only|just|therefore|thus|simply)*(?:minus|negative)?\W*"
)
_JOINT = re.compile(r"(?i)(?:[\s,;&/-]|\.\.\.|…)*(?:\b(?:and|or|to|through)\b)?(?:[\s,;/-]|\.\.\.|…)*(?:[a-z]\s*=\s*)?")
_WORDY = re.compile(r"(?i)\b(?:and|or|to|through)\b|&|\.\.\.|…")
_CHOICE = re.compile(
    r"(?i:option|choice|answer)?\s*[(\[{]?\s*([A-J])\s*(?:[)\]}.:,;]|\bis\b|$|-|\s+(?i:because|since|as)\b)"
)
_LAST_CHOICE = re.compile(
    r"(?:I(?:\s+would|['’]d)?\s+(?:choose|pick|select)\s+)?(?i:(?:option|choice|answer)\s*)?\(?([A-J])\)?(?:\s+it\s+is)?"
)
_BULLET = re.compile(r"[ \t]*(?:[-*•]|\(?\d{1,2}\))[ \t]+(?=\S)")
_TWO_UNITS = re.compile(  # 3 _hrs_ 20 _min_: the number between is written as 0
    r"(?i)\s?(?:years?|yrs?) (?:and )?0 ?months?\b|\s?days? (?:and )?0 ?(?:hours?|hrs?)\b"
    r"|\s?(?:hours?|hrs?|h) (?:and )?0 ?(?:minutes?|mins?|m)\b"
    r"|\s?(?:minutes?|mins?|m) (?:and )?0 ?(?:seconds?|secs?|s)\b"
    r"|\s?(?:feet|foot|ft) (?:and )?0 ?(?:inch(?:es)?|in)\b|\s?(?:pounds?|lbs?) (?:and )?0 ?(?:ounces?|oz)\b"
    r"|\s?dollars? (?:and )?0 ?cents?\b"
)
_ONE_IN_BRACES = re.compile(r"(?<!\\)\{\s*(\w)\s*\}")
_MODULUS = re.compile(r"\\pmod\s*(?:\{([^{}]*)\}|(\w))|\(\s*\\?mod\s*([^()]*)\)|\\b?mod(?![A-Za-z])")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}")
LONGEST_CLAUSE = 200  # characters


class Final(NamedTuple):
    r"""The part of a text that holds its final answer.

    Args:
        text: that part, as it was written.
        place: what marks it: a ``\boxed{}``, "####" or "the answer is", or nothing, so that it is the whole text.
    """

    text: str
    place: Place


def final_answer(text: str) -> Final:
    r"""Return the part of a text that holds its final answer, the whole text when nothing marks it.

    >>> final_answer("2 + 2 = 4, so \\boxed{4}.").text
    '4'
    >>> final_answer("She has 40 + 2.\n#### 42").text
    '42'
    """
    text = text.rpartition("</think>")[2]
    if tagged := _TAGGED.findall(text):
        text = tagged[-1]
    boxed = _last_boxed(text)
    if boxed is not None:
        return Final(boxed, "box")
    text = _without_bullet(text)
    if marked := _HASHES.findall(text):
        return Final(marked[-1].strip(), "stated")
    for stated in reversed(list(_STATED.finditer(text))):
        rest = text[stated.end() :]
        if re.search(r"[^\W_]", rest) and not re.match(r"(?i)\W*(?:right|correct|wrong)\b", rest):
            return Final(rest.strip(), "stated")
    return Final(text.strip(), "text")


def _last_boxed(text: str) -> str | None:
    r"""Return what stands in the last complete ``\boxed{...}``, which may hold further braces."""
    if "\\boxed" not in text:
        return None
    opened: list[int | None] = []  # where the inside of each open brace begins, if it is a box's
    found: tuple[int, str] | None = None
    for match in _BRACES.finditer(text):
        if match["bare"]:
            found = match.start("bare"), match["bare"]
        elif match[0] == "}":
            begin = opened.pop() if opened else None
            if begin is not None and (found is None or begin > found[0]):
                found = begin, text[begin : match.start()]
        else:
            opened.append(match.end() if match[0] != "{" else None)
    return None if found is None else found[1]


def number_of(final: Final) -> Number | None:
    """Return the number that a final answer gives; None for none, several, or one that must still be calculated."""
    factorial = final.place == "box" and final.text.rstrip(" $").endswith("!")
    whole = read_number(final.text) if len(final.text) < 200 and not factorial else None
    if whole is not None:
        return whole
    if final.place == "box":
        return None if factorial or _SEVERAL.search(final.text) else _only_number(list(find_numbers(plain(final.text))))
    if final.place == "stated":
        return _stated_number(plain(final.text))
    return _last_number(final.text)


def words_of(final: Final) -> set[str]:
    """Return what a final answer may be, as `bare_words`: all of it, or its first sentence or clause after a mark.

    Without a mark, also what its last line ends with, as "Maria" of "So the winner is Maria."
    """
    text = _SPACED_END.sub(r"\1", plain(final.text).strip())
    if final.place == "box":
        return {bare_words(text)}
    if final.place == "text":
        return {bare_words(text), bare_words(_last_words(text))}
    sentence = _REASON.split(next(_sentences(text)), maxsplit=1)[0]
    line = text.partition("\n")[0]  # "St. Louis." is no two sentences
    return {bare_words(line), bare_words(sentence), bare_words(_CLAUSE_END.split(sentence, maxsplit=1)[0])}


def clauses_of(final: Final) -> list[str]:
    """Return the short parts of a final answer that may be all of it, as they were written; none that is prose."""
    text = final.text.rstrip(".,;:! ")
    if final.place == "stated":
        text = text.partition("\n")[0]
        sentence = _REASON.split(next(_sentences(text)), maxsplit=1)[0]
        parts = [text, sentence, _CLAUSE_END.split(sentence, maxsplit=1)[0]]
    else:
        parts = [text, _last_words(text)]
    return [part for part in dict.fromkeys(parts) if part and len(part) < LONGEST_CLAUSE and not _PROSE.search(part)]


def bare_words(text: str) -> str:
    """Return plain text without case, spaces, outer punctuation and the braces around one letter."""
    text = _MODULUS.sub(r" mod \1\2\3", _ONE_IN_BRACES.sub(r"\1", text))
    bare = "".join(plain(text).split()).strip(".,;:!\"'“”‘’*_ ").casefold()
    return bare.replace("p.m", "pm").replace("a.m", "am")


def choice_of(final: Final) -> str | None:
    r"""Return the letter of a multiple choice that a final answer begins with, in upper case.

    >>> choice_of(final_answer("The answer is **(B)**, Paris.")), choice_of(final_answer("The answer is a dog"))
    ('B', None)
    """
    text = plain(final.text).strip().lstrip("\"'“‘*_ ")
    if re.fullmatch(r"\(?[a-j]\)?\.?", text):
        return text.strip("().").upper()
    if final.place == "text" and (last := _LAST_CHOICE.fullmatch(_last_words(text))):
        return last[1]
    match = _CHOICE.match(text)
    return match[1] if match and (final.place != "text" or len(text) < 80) else None


def _without_bullet(text: str) -> str:
    """Return a text without the bullet before the number that its last line is, below a sentence or a colon."""
    before, _, last = text.rstrip().rpartition("\n")
    bullet = _BULLET.match(last)
    if bullet is None or before.rstrip("*_ \n")[-1:] not in (":", ".", "!", "?"):
        return text
    return text if read_number(last[bullet.end() :]) is None else f"{before}\n{last[bullet.end() :]}"


def _last_words(text: str) -> str:
    """Return what the last line of plain text ends with, as "B" of "So it is B."."""
    return _TELLS.split(text[text.rfind("\n") + 1 :])[-1].strip(".,;:!\"'“”‘’*_ ")


def _only_number(found: list[Found]) -> Number | None:
    """Return the one number that stands alone, as the 42 of ``x = 6 * 7 = 42``."""
    numbers = {one.number for one in found if not one.operand}
    return numbers.pop() if len(numbers) == 1 else None


def _stated_number(text: str) -> Number | None:
    """Return the number that is given where the answer is stated: the first sentence that is one decides."""
    for sentence in _sentences(text):
        found = list(find_numbers(sentence))
        if found:
            outside = _REMARK.sub("", sentence)
            found_outside = list(find_numbers(outside))
            if any(not one.operand for one in found_outside):
                return _number_in(outside, found_outside)
            return _number_in(sentence, found)
        if not _NOTHING_YET.fullmatch(sentence):
            return None
    return None


def _last_number(text: str) -> Number | None:
    """Return the number of the last sentence that has one."""
    for line in _lines_from_end(text):
        for sentence in reversed(list(_sentences(plain(line)))):
            found = list(find_numbers(sentence))
            if found:
                return _number_in(sentence, found, short_lists=True)
    return None


def _number_in(sentence: str, found: list[Found], *, short_lists: bool = False) -> Number | None:
    """Return the number that a sentence gives: that it begins with, else its last; None where it lists several."""
    leads = _LEAD_IN.fullmatch(sentence[: found[0].start]) is not None
    alone = [index for index, one in enumerate(found) if not one.operand]
    if not leads and alone and (reason := _REASON.search(sentence, found[alone[0]].end)):
        alone = [index for index in alone if found[index].end <= reason.start()]
    if not alone:
        return None
    chosen = alone[0] if leads else alone[-1]
    if any(_of_two_units(sentence, *pair) for pair in itertools.pairwise(found[max(0, chosen - 1) : chosen + 2])):
        return None
    return None if _in_list(sentence, found, chosen, short_lists=short_lists and not leads) else found[chosen].number


def _of_two_units(sentence: str, first: Found, second: Found) -> bool:
    """Say whether two numbers are one quantity in two units, as in "3 hrs 20 min"; "3 hours and 0 minutes" is 3."""
    between = f"{sentence[first.end : second.start]}0{sentence[second.end : second.end + 10]}"
    return second.number.value != 0 and _TWO_UNITS.match(between) is not None


def _in_list(sentence: str, found: list[Found], chosen: int, *, short_lists: bool) -> bool:
    """Say whether a number is one of several, as in "1, 2 or 3"; with short_lists, "in 2019, 12 came" is no list."""
    first = last = chosen
    wordy = False
    while first > 0 and _JOINT.fullmatch(between := sentence[found[first - 1].end : found[first].start]):
        first, wordy = first - 1, wordy or bool(_WORDY.search(between))
    while last + 1 < len(found) and _JOINT.fullmatch(between := sentence[found[last].end : found[last + 1].start]):
        last, wordy = last + 1, wordy or bool(_WORDY.search(between))
    return last - first >= (2 if short_lists and not wordy else 1)


def _sentences(text: str) -> Iterator[str]:
    begin = 0
    for match in _SENTENCE_END.finditer(text):
        yield text[begin : match.start()]
        begin = match.end()
    yield text[begin:]


def _lines_from_end(text: str) -> Iterator[str]:
    end = len(text)
    while end >= 0:
        begin = text.rfind("\n", 0, end) + 1
        yield text[begin:end]
        end = begin - 1
