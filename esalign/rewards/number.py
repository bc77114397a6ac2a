"""Numbers as people and models write them: separators, units, percent signs, scientific notation, fractions."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from esalign.rewards.plain import plain

LONGEST = 400  # digits, and the largest power of ten: beyond, reading would take long and no answer is meant
ROUNDING = Fraction(1, 10**6)
FLOAT_NOISE = Fraction(1, 10**12)
SCALES = {"hundred": 10**2, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES["dozen"] = 12

_WHOLE = r"""
    [1-9]\d{0,2}(?P<mark>[,'’_ ])\d{3}(?:(?P=mark)\d{3})*(?!\d)   # 1,234,567 and 1 234 567
  | [1-9]\d?(?:,\d{2})+,\d{3}(?!\d)                                # 12,34,567
  | [1-9]\d{0,2}(?:\.\d{3}){2,}(?![.\d])                           # 1.234.567
  | \d+
"""
_LITERAL = re.compile(
    rf"""
    (?<![A-Za-z0-9_])(?<!\d[.,])
    (?P<sign>[-+]\ ?|(?:minus|negative)\s+)?(?:(?:USD|EUR|GBP|INR|Rs\.?)\ ?)?
    (?:
        (?P<power>10)\s?(?:\^|\*\*)\s?[({{]?\s?(?P<of_ten>[-+]?\d+)[)}}]?(?!\d)
      | (?:(?P<before>\d+)\ )?(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![.,]?\d)
      | (?:
            (?P<german>\d{{1,3}}(?:\.\d{{3}})+,\d{{1,2}}|\d+,(?!\d{{3}}(?!\d))\d+|0,\d+)(?![,.]?\d)
          | (?P<whole>{_WHOLE})?(?P<decimals>\.\d+)?(?<=\d)
        )
        (?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\s?[×x*·]\s?10\s?(?:\^|\*\*)\s?[({{]?\s?(?P<shift>[-+]?\d+)[)}}]?(?!\d))?
    )
    (?:\ ?(?P<scale>hundred|thousand|million|billion|trillion|dozen)\b|(?P<k>k)\b)?
    (?P<percent>\s?%|\ per\s?cent\b)?
    """,
    re.VERBOSE,
)
_UNIT = re.compile(
    r"""(?:\ ?°\ ?[CFK]?|\ ?[mgshlLKCFNJWVT](?![A-Za-z])|[\ -]?[A-Za-zµΩ]{2,}[A-Za-z.'’]*)?   # °C, m, apples
        (?:[\^]?[{(]?-?[123²³][)}]?(?!\d))?                                                    # m^2
        (?:(?:\ ?[/·]\ ?|[\ -])[A-Za-zµΩ.'’]+(?:[\^]?[{(]?-?[123²³][)}]?(?!\d))?)*             # /h, per hour
        [\s.;:!]*""",
    re.VERBOSE,
)
_BASED = re.compile(r"(?<![A-Za-z0-9])([0-9A-Z]+)\s?_\s?\{?\s?(\d{1,2})\s?\}?(?![A-Za-z0-9])")
_NAMED = re.compile(r"\s*[A-Za-z]\w?\s*=\s*")
_CALCULATED = re.compile(
    r"(?i)\b(?:squared|cubed|factorial|times|plus|minus|divided|multiplied|or|and|to)\b"
    r"|\b(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|cis)h?\s*\(?\s*(?:\d|[a-z]\b|\\)"
)
_OPERATOR_LEFT = re.compile(
    r"""(?:
        [+*/^×·÷√_{}\\]                # 3 + _
      | \d(?:\ :|:(?!\ ))             # 3:_, 3 : _, but not "Step 1: _"
      | [\d)}²³]\ ?-                   # 3 - _
      | (?<!['’])\b[A-Za-z]\ -         # x - _, but not it's -_
      | \\[A-Za-z]+(?:_\{?\w+\}?)?     # \sqrt _, \log_3 _
      | [A-Za-z0-9)]\(                 # 3(_
      | (?<![<\w/])[A-Za-z]\ ?[<>]=? | [≤≥≠]   # x > _, but not the tag of <a>_
      | \d\ (?:times|plus|minus|over|by) | (?:divided|multiplied)\ by
    )\ *$""",
    re.VERBOSE,
)
ABBREVIATED = (  # what may stand at a number without a space and be no variables, as those of 2ab are
    r"(?i:[cdkm]m|k?g|mg|lbs?|oz|ft|in|yd|mi|hrs?|min|sec|[mk]ph|kmh|[mcd]?l|[km]?w|kwh|k?hz|[mg]hz|[kmgt]b|[ap]m|th|st|nd"
    r"|rd|deg|rad|mol|k?pa|ev|db|k?cal|gal|pct|usd|eur|gbp|inr|cad|aud|yrs?|m?s|bps|pts?|rpm|psi|ha|px|bn|mn|pcs|k?[jnv]|ma|per|to"
    r"|or|and|x\d)"
)
_OPERATOR_RIGHT = re.compile(
    rf"""
      (?!{ABBREVIATED}(?![A-Za-z]))[A-Za-z]{{2,3}}(?![A-Za-z'’]|\.[A-Za-z])   # _ab
    | \ (?:[bcdefijotuv]|a(?=[\s.]*$|\ [a-z](?![A-Za-z])))(?![A-Za-z'’]|\.[a-z])   # _ a b
    | \ (?:ab|bc|xy|yz|xz|pq|abc|xyz|pqr|pi)(?![A-Za-z'’])      # _ ab, which no unit is called
    |"""
    r"""
      \ *[*^×·÷√π{}\\]                 # _ * 3, _^3, _\sqrt{3}
    | \ \+ | \+\ *[\dA-Za-z(\\]        # _ + 3, but not the "+" of "12+ people"
    | \ */\ *[\d(] | \ *-\ ?[\d(\\]    # _ / 3, _ - 3, but not _/hour
    | :\d                              # _:3
    | \ ?[<>]=?\ ?[A-Za-z](?![\w>]) | \ ?[≤≥≠]   # _ < x
    | \(\ *[\d.]+\ *[-+*/×·÷)]         # _(3 + 4)
    | \ ?[xyznpqrw](?![A-Za-z])        # _x
    | [A-Za-z](?![A-Za-z])(?<![mgshlLKCFNJWVT])
    | \ x\ ?\d                         # _ x 3
    | \ (?:squared|cubed|factorial)\b
    | \ (?:times|plus|minus|over|divided\ by|multiplied\ by)\ \S*\d
    | \ ?[A-Za-z%°]+\ *[+×÷]\ *\d | \ ?[A-Za-z%°]+\ +[-*·]\ +\d     # _ dollars + 3
    """,
    re.VERBOSE,
)
_DENIED = re.compile(r"(?i)(?:\bnot|n't)\s+(?:be\s+|equal\s+(?:to\s+)?)?$")


@dataclass(frozen=True)
class Number:
    """A number that was written out.

    Args:
        value: exactly.
        place: the value of its last decimal place; 0 for a whole number or a fraction, which are exact.
        percent: whether a percent sign follows.
    """

    value: Fraction
    place: Fraction = Fraction(0)
    percent: bool = False


@dataclass(frozen=True)
class Found:
    """A number in a text.

    Args:
        number: which.
        start: where it begins.
        end: where it ends.
        operand: whether it is a part of an expression, such as the 3 of ``3 + 4`` or of ``3x``.
    """

    number: Number
    start: int
    end: int
    operand: bool


def read_number(text: str) -> Number | None:
    r"""Return the number that a text is, its unit left out; None when it is more or less than one number.

    >>> read_number(r"\$1,080.50").value, read_number(r"10~\mathrm{km/h}").value, read_number("80 + 75")
    (Fraction(2161, 2), Fraction(10, 1), None)
    """
    line = plain(text).strip().strip("\"“”'‘’ ")
    if line.startswith("(") and line.endswith(")") and "," not in line:
        line = line[1:-1].strip()
    line = _NAMED.sub("", line, count=1) if _NAMED.match(line) else line
    found = next(find_numbers(line), None)
    if found is None or found.operand or found.start or not _UNIT.fullmatch(rest := line[found.end :]):
        return None
    return None if _CALCULATED.search(rest) else found.number


def read_based(text: str) -> int | None:
    """Return the last number of a text that is written in a base, as 2312_5 is; None where there is none.

    >>> read_based("It is $101_2$"), read_based("1A_{16}"), read_based("a_{12}"), read_based("29_8")
    (5, 26, None, None)
    """
    for digits, base in reversed(_BASED.findall(plain(text))):
        with contextlib.suppress(ValueError):  # a digit that the base does not have
            if digits[0].isdigit() and 2 <= int(base) <= 36 and len(digits) < LONGEST:
                return int(digits, int(base))
    return None


def find_numbers(line: str) -> Iterator[Found]:
    """Yield the numbers in plain text, from left to right."""
    for match in _LITERAL.finditer(line):
        number = _value(match)
        if number is not None:
            left, right = line[max(0, match.start() - 30) : match.start()], line[match.end() : match.end() + 30]
            signed = (match["sign"] or "").strip() in ("-", "+") and re.search(r"[\d)}]\s?$|(?<!['’])\b[a-z]\s$", left)
            operand = signed or _OPERATOR_LEFT.search(left) or _OPERATOR_RIGHT.match(right) or _DENIED.search(left)
            yield Found(number, match.start(), match.end(), bool(operand))


def same_number(given: Number, right: Number) -> bool:
    """Say whether two numbers are the same, or one is the other rounded at the sixth significant digit or later.

    A percentage equals both its number and its hundredth.
    """
    if given.percent != right.percent:
        hundredth = Number(given.value / 100, given.place / 100), Number(right.value / 100, right.place / 100)
        other = (hundredth[0], right) if given.percent else (given, hundredth[1])
        return _close(given, right) or _close(*other)
    return _close(given, right)


def _close(given: Number, right: Number) -> bool:
    gap, size = abs(given.value - right.value), abs(right.value)
    if gap == 0:
        return True
    whole = given.value.denominator == 1, right.value.denominator == 1
    if all(whole):
        return False
    if gap <= FLOAT_NOISE * size:
        return True
    return not any(whole) and gap <= ROUNDING * size and gap < max(given.place, right.place)


def _value(match: re.Match[str]) -> Number | None:
    """Return what the groups of `_LITERAL` say; None for a number that is longer than any answer."""
    if match.end() - match.start() > LONGEST:
        return None
    place = Fraction(0)
    if match["power"]:
        value = _power_of_ten(match["of_ten"])
    elif match["over"]:
        value = _fraction(match["before"], match["over"], match["under"])
    else:
        digits = _digits(match)
        shift = _power_of_ten(match["exponent"] or match["shift"] or "0")
        value = None if shift is None else Fraction(digits) * shift
        decimals = len(digits.partition(".")[2])
        if value is not None and shift is not None and value.denominator != 1:
            place = Fraction(1, 10**decimals) * shift
    if value is None:
        return None
    if (match["sign"] or "+").strip() != "+":
        value = -value
    scale = SCALES[match["scale"] or match["k"]] if match["scale"] or match["k"] else 1
    return Number(value * scale, place * scale, bool(match["percent"]))


def _digits(match: re.Match[str]) -> str:
    """Return the digits and decimal point of a number, without its thousands separators."""
    if match["german"]:
        return str(match["german"]).replace(".", "").replace(",", ".")
    whole = re.sub(r"\D", "", match["whole"] or "0")
    return whole + (match["decimals"] or "")


def _power_of_ten(exponent: str) -> Fraction | None:
    return Fraction(10) ** int(exponent) if len(exponent) <= 5 and abs(int(exponent)) <= LONGEST else None


def _fraction(before: str | None, over: str, under: str) -> Fraction | None:
    """Return a fraction or mixed number; one that is a whole number, such as 24/2, is still to be divided out."""
    if int(under) == 0 or int(over) % int(under) == 0:
        return None
    return Fraction(before or 0) + Fraction(int(over), int(under))
