"""LaTeX, Markdown and typographic signs -> plain text, in which numbers and words can be read."""

import re
import unicodedata
from fractions import Fraction

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−‒–﹣－", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u200a\u202f", " "),
        **dict.fromkeys("\u200b\u2060\u2062\ufeff€£¥₹", None),
        **dict(zip("≈≡→⇒＝＋．，％∗⋅∙", "=====+.,%*··", strict=True)),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **{sign: " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/") for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    }
)
_SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_RAISED = re.compile(r"(?<=\d)[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_POWER = re.compile(r"[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_ROOT = re.compile(r"([√∛])\s*(?:\(([^()]*)\)|(\d+|[A-Za-zπ]))")
_LATEX_OF = str.maketrans(
    {
        "∞": r"\infty ",
        "∈": r" \in ",
        "±": r"\pm ",
        "−": "-",
        "×": r"\times ",
        **dict.fromkeys("·⋅∙", r"\cdot "),
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
    }
)
_DOLLAR = re.compile(r"(?:\b(?:US|CA|AU|NZ|HK|A|C|S))?\\?\$")
_WRAPPED = re.compile(
    r"\\(?:text|mathrm|mbox|textbf|mathbf|boldsymbol|bm|textit|mathit|emph|operatorname|texttt|textrm|mathsf|boxed|fbox"
    r"|underline|displaystyle|color\{\w+\}|textcolor\{\w+\})\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))")
_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?:\[\w+\])?", "\n"),
        (r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}(?=\s*[\w(\\{])", r" \\\1 "),
        (r"\{,\}|,\\!\s*", ","),
        (r"\\!|\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])", ""),
        (r"(?<!\\)~|\\[,;:> ]|\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])", " "),
        (r"\\([%#&_{}])", r"\1"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\(?:degree|textdegree)(?![A-Za-z])", "°"),
        (r"\\(?:times|ast)(?![A-Za-z])", "×"),
        (r"\\cdot(?![A-Za-z])", "·"),
        (r"\\div(?![A-Za-z])", "÷"),
        (r"\\(?:approx|simeq|equiv|implies|Rightarrow|rightarrow|to|therefore)(?![A-Za-z])", "="),
        (r"\\[()\[\]]", " "),
    )
)
_REPEATING = re.compile(r"(\d{0,30})\.(\d{0,30})\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,30})\s*\}|(\d))")
_SPACES = re.compile(r"[ \t]+")
_TAGS = re.compile(r"</?(?:b|strong|i|em|u|code|mark|span|p|br)\s*/?>", re.IGNORECASE)
_EMPHASIS = re.compile(
    r"(?<![\w)\]}*])(?:\*{1,3}|_{1,3}|`{1,3})(?=[^\s*_`])|(?<=[^\s*_`(])(?:\*{1,3}|_{1,3}|`{1,3})(?![\w(\[{*])"
)


def plain(text: str) -> str:
    r"""Return a text without its markup; what LaTeX cannot be said plainly stays as it is.

    >>> plain(r"**The answer** is $\frac{1}{2}~\mathrm{km}$")
    'The answer is 1/2 km '
    """
    if not text.isascii():
        text = _RAISED.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text).translate(_SIGNS)
    if "<" in text:
        text = _TAGS.sub("", text)
    if "\\" in text or "~" in text or "{,}" in text:
        text = _without_latex(text)
    if "$" in text:
        text = _DOLLAR.sub("", text)
    if "*" in text or "_" in text or "`" in text:
        text = _EMPHASIS.sub("", text)
    return _SPACES.sub(" ", text) if "  " in text or "\t" in text else text


def typeset(text: str) -> str:
    r"""Return mathematics whose typographic signs are LaTeX.

    >>> typeset("(1+√5)/2"), typeset("x² ± ∛(2x)")
    ('(1+\\sqrt{5})/2', 'x^{2} \\pm  \\sqrt[3]{2x}')
    """
    if text.isascii():
        return text
    text = _POWER.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _ROOT.sub(lambda match: rf"\sqrt{'[3]' * (match[1] == '∛')}{{{match[2] or match[3]}}}", text)
    return text.translate(_LATEX_OF)


def _without_latex(text: str) -> str:
    text = _DOLLAR.sub("", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _FRACTION.sub(_write_fraction, text)
    text = _REPEATING.sub(_write_repeating, text)
    for _ in range(3):  # commands inside commands
        shorter = _WRAPPED.sub(r" \1 ", text)
        if shorter == text:
            break
        text = shorter
    return text


def _write_fraction(match: re.Match[str]) -> str:
    over, under = (match[1], match[2]) if match[1] else (match[3], match[4])
    mixed = match.string[max(0, match.start() - 3) : match.start()].rstrip(" ")[-1:].isdigit()
    return f"{' ' if mixed else ''}{over}/{under}"


def _write_repeating(match: re.Match[str]) -> str:
    """Write a repeating decimal as the fraction that it is: all digits less those before the bar, over 9...90...0."""
    before, after = match[1] + match[2], match[3] or match[4]
    over = int(before + after) - int(before or "0")
    return str(Fraction(over, (10 ** len(after) - 1) * 10 ** len(match[2])))
