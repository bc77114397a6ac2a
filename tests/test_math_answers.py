"""Answers as competition mathematics writes them: each answers itself wherever it stands, and not its neighbour."""

import itertools
import re

import pytest

from esalign.rewards.maths import is_correct

FORMS = (
    r"\$32,\!348", r"(-\infty, 3] \cup (7, \infty)", "[2, 5)", "(2, 5)",
    r"\begin{pmatrix} 1 & -2 \\ 3 & 5 \end{pmatrix}", r"\begin{pmatrix} 1 & -2 \\ 3 & 6 \end{pmatrix}",
    r"\begin{pmatrix} 4 \\ -7 \\ 1/2 \end{pmatrix}", r"\begin{bmatrix} 2 \\ 9 \end{bmatrix}", r"\text{Tuesday}",
    r"\text{(C)}", r"\text{even}", r"\text{neither}", r"47^\circ", r"112.5^\circ", r"18\text{ cm}^2",
    r"6\sqrt{5}\text{ meters}", r"25\pi", r"\frac{9\pi}{4}", r"15\%", r"12.5\%", r"1,\!204,\!000", r"73,\!500",
    r"\$18.25", r"\$7", r"3\frac{2}{7}", r"\frac{23}{9}", r"-\frac{5}{12}", r"\dfrac{11}{6}", r"\tfrac38",
    r"\frac{\sqrt{7}}{3}", r"2\sqrt{13}", r"\sqrt[3]{12}", r"3 + 2\sqrt{2}", r"\frac{-1 + \sqrt{21}}{2}",
    r"4 \pm \sqrt{6}", "(3, -8)", "(2, 5, 9)", r"\left( \frac{3}{5}, -\frac{1}{2} \right)", r"\{2, 3, 11\}",
    "-4, 1, 6", "3,7", "x^2 - 5x + 6", "2x^3 + x - 9", "(x-4)(x+9)", "y = 3x - 7", "x = 14", r"x \in [1, 4]",
    "2312_5", "1A7_{16}", "101101_2", "5 - 2i", "3i", "e^{2}", r"\log_3 7", "2^{40}", "9!", r"\binom{14}{5}",
    r"\infty", r"\emptyset", "0.375", ".85", r"6.02 \times 10^{23}", r"4:15\text{ p.m.}", "3:4", r"\text{Maria}",
    "Jonas", "Triangle", r"\text{Yes}", "x > 6", r"-3 \le x \le 8", r"\frac{a+b}{2}", "2ab + c",
    r"\left[ \frac{1}{4}, 6 \right)", r"\mathbb{R}", r"\text{Carla, Dan}", r"81\text{ square units}",
    r"\frac{x+2}{x-5}", "n(n+1)/2", r"17\text{ hours}", r"50\text{ mph}", r"\sin 20^\circ", r"\cot x", "14_{7}",
    r"\sqrt{x^2+1}", r"-\sqrt{3}", r"8 \sqrt[4]{2}", r"\text{Zoë}", "東京", r"8:40\text{ a.m.}", r"\$0.05",
    r"60^{\circ}", r"\text{isosceles}",
)  # fmt: skip
FRAMES = ("{}", r"So it is $\boxed{{{}}}$.")
MORE_FRAMES = (
    r"\[ \boxed{{ {} }} \]",
    "Therefore the answer is ${}$.",
    r"The final answer is \({}\). I hope it is correct.",
    "1 + 1 = 2.\n#### {}",
    "<answer>{}</answer>",
)
SOLUTION = r"We add $2 + 2 = 4$ to it. Hence the value is $\boxed{{{}}}$, as was to be shown."


def test_there_are_more_than_sixty_forms():
    assert len(set(FORMS)) == len(FORMS) > 60


@pytest.mark.parametrize("frame", [*FRAMES, *(pytest.param(more, marks=pytest.mark.slow) for more in MORE_FRAMES)])
def test_each_answers_itself_and_its_solution_and_not_its_neighbours(frame):
    for index, answer in enumerate(FORMS):
        completion = frame.format(answer)
        assert is_correct(completion, answer), (completion, answer)
        assert is_correct(completion, SOLUTION.format(answer)), (completion, answer)
        for distance in (1, 7):
            other = FORMS[(index + distance) % len(FORMS)]
            assert not is_correct(completion, other) or {answer, other} == {"0.375", r"\tfrac38"}, (completion, other)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (r"\$32,\!348", ["32348", r"\boxed{32,348}", r"\$32,348"], ["32", "348"]),
        (r"\text{Maria}", ["Maria", "The winner is Maria."], ["Jonas", "Maria and Jonas", "It is not Maria"]),
        ("Jonas", [r"It must be \textbf{Jonas}.", "Therefore Jonas."], ["Not Jonas", "It is Jonas or Maria."]),
        (r"\text{even}", ["The function is even."], ["odd", "The function is neither even nor odd."]),
        (r"\text{Carla, Dan}", ["Carla and Dan", r"\boxed{\text{Dan and Carla}}"], ["Carla", "Carla, Eve"]),
        (r"\text{(C)}", ["C", r"\boxed{\textbf{(C)}}", "The answer is C."], ["D", "(A)"]),
        (r"4 \pm \sqrt{6}", [r"\boxed{4-\sqrt6, 4+\sqrt6}"], [r"\boxed{4+\sqrt6}", r"\boxed{4 \pm \sqrt{5}}"]),
        ("-4, 1, 6", [r"\boxed{1,-4,6}", "The answer is $6$, $1$ and $-4$."], [r"\boxed{-4,1}", r"\boxed{-4,1,7}"]),
        ("3,7", [r"\boxed{7, 3}", "3 and 7"], ["37", r"\boxed{3,8}"]),
        (r"\{2, 3, 11\}", [r"\boxed{\{11,2,3\}}", "2, 3, 11"], [r"\boxed{\{2,3\}}", "2, 3, 12"]),
        ("x = 1, y = 2", [r"\boxed{x=1,y=2}"], [r"\boxed{x=2,y=1}"]),
        ("(2, 5)", [r"\boxed{(2,5)}"], [r"\boxed{(5,2)}", r"\boxed{[2,5)}"]),
        ("2312_5", ["2312", r"\boxed{2312_{5}}"], [r"\boxed{2312_6}", "2313"]),
        ("9!", [r"\boxed{362880}", r"\boxed{9!}"], ["9", r"\boxed{9}", "8!"]),
        ("3", ["3"], [r"\boxed{\{2, 3, 11\}}", r"\boxed{\begin{pmatrix} 1/2 \\ 3 \end{pmatrix}}"]),
        ("9", ["The answer is 9!"], [r"\boxed{9!}"]),
        (r"\$7", ["7", "7 dollars"], [r"\boxed{\log_3 7}"]),
        (r"4:15\text{ p.m.}", ["4:15 pm", "4:15 P.M."], ["4:16 pm", "4:15 am"]),
        (r"3\frac{2}{7}", [r"\frac{23}{7}", "23/7", "3 2/7"], ["32/7", "6/7"]),
        (r"0.\overline{27}", [r"\boxed{\frac{3}{11}}", r"It is $0.\overline{27}$."], [r"0.\overline{3}", "0", "0.27"]),
        (r"\frac{1}{6}", [r"0.1\overline{6}", r"\boxed{0.1\bar6}"], [r"0.\overline{16}", r"-0.1\overline{6}"]),
        (
            r"3\mathbf{i} - 2\mathbf{j}",
            [r"$3\mathbf{i} - 2\mathbf{j}$", r"\boxed{-2\mathbf{j} + 3\mathbf{i}}"],
            ["3", r"k \neq 3", r"3\mathbf{i} - 4\mathbf{j}"],
        ),
        (r"4\mathrm{e}^2", [r"\boxed{4e^2}"], ["4", r"\boxed{4\mathrm{e}^3}"]),
        (
            r"\textbf{(B)}",
            [r"So it is $\textbf{(B)}$.", "Hence the choice is B."],
            ["So it is A, B or C.", "So it is C."],
        ),
        ("St. Louis", ["The answer is St. Louis."], ["The answer is St. Paul.", "The answer is St. Louis. Or Paris."]),
        (
            r"\begin{pmatrix} 1 \\ 7 \end{pmatrix}",
            [r"The answer is \begin{pmatrix} 1 \\ 7 \end{pmatrix}."],
            [r"The answer is \begin{pmatrix} 1 \\ 8 \end{pmatrix}.", "The answer is 7."],
        ),
        (r"18\text{ cm}^2", ["18", "18 cm^2", r"\boxed{18~\mathrm{cm}^2}"], ["19", "182"]),
    ],
)
def test_other_ways_to_write_them_count_and_others_do_not(answer, right, wrong):
    assert [is_correct(completion, answer) for completion in right] == [True] * len(right)
    assert [is_correct(completion, answer) for completion in wrong] == [False] * len(wrong)


READ_IN_PART = (  # by a reader that takes of a formula what it understands
    r"x\equiv 3\pmod 7", r"n \equiv 1 \pmod{4}", "x ≡ 2 (mod 5)", r"1,2,\ldots,8", r"1, 2, \dots, n",
    r"2 + 4 + \cdots + 20",
    r"\ldots, -2, 0, 2", r"2\operatorname{arcsec}x", r"2\operatorname{sech}x", r"2\operatorname{Li}(x)",
    r"6\operatorname{cis}30^\circ", r"6\text{ cis }30", r"2\mathrm{arctan}x", r"3\pi\mid 4", r"4\nmid 12",
    r"5\parallel 6",
    r"5\perp 3", r"2\oplus 3", r"2\odot 3", r"3\star 4", r"3\circ 4", r"7\#3", r"x \not= 4", r"x\ne \pm 2", r"4\sim 5",
    r"3\propto x", r"4 \ll 9", r"3\subset 4", r"A\cup 3", r"x=1\lor x=2", r"x = 1 \vee x = 2", r"3\wedge 5", r"\neg 3",
    r"9\implies 10", r"4\to 5 \to 6", r"3 \uparrow 4", r"5\uparrow\uparrow 2", r"\langle 1,2\rangle", r"2^{\aleph_0}",
    r"2\pi k, k\in\mathbb{Z}", r"2n+1, n \ge 0", r"3k \text{ for } k \in \mathbb{Z}", r"3\dagger", r"3\text{ R }1",
    r"\begin{cases} 3 & x>0\\ 4 & x<0\end{cases}", r"\{x \mid x>3\}", r"12\text{ or }15", r"x \leq 3 \text{ or } x > 7",
    "x > 6", r"x \ge 6", r"-3 \le x \le 8", r"x \neq 3", r"x \in [1,4]", r"5\angle 30^\circ", r"\gcd(6, 4)", "P(3, 4)",
    "f(3)", "f'(2)", r"\text{at least }5", r"5 \text{ to } 7", "x^2 + y^2 = 25", "a_{10}", "S_5",
    r"\mathbb{Z}/5\mathbb{Z}",
    r"x = 1 \oplus y = 2", "O(n^2)", r"\infty - 3", r"a=3,b=5", r"(3, 5) \cup \{7\}",
)  # fmt: skip


def test_no_part_of_an_answer_is_the_answer():
    for answer in READ_IN_PART:
        parts = set(re.findall(r"\d+|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", answer))
        for part, frame in itertools.product(parts, ("{}", r"\boxed{{{}}}", "The answer is ${}$.")):
            completion = frame.format(part)
            assert not is_correct(completion, answer), (completion, answer)
            assert not is_correct(completion, SOLUTION.format(answer)), (completion, answer)


@pytest.mark.parametrize("frame", FRAMES)
def test_an_answer_that_no_reader_understands_answers_itself(frame):
    for index, answer in enumerate(READ_IN_PART):
        assert is_correct(frame.format(answer), answer), answer
        assert not is_correct(frame.format(READ_IN_PART[index - 2]), answer), (READ_IN_PART[index - 2], answer)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (r"25\pi", [r"25\pi\,\mathrm{m}", r"\boxed{25\pi\,\mathrm{m}}", r"It is $25\pi$ m."], ["25", r"25\pi\mid 4"]),
        (
            r"x\equiv 3\pmod 7",
            [r"\boxed{x\equiv 3\pmod{7}}", "x ≡ 3 (mod 7)", r"x\equiv3\ (\mathrm{mod}\ 7)"],
            [r"x \equiv 4 \pmod 7", r"x\equiv 3\pmod 8"],
        ),
        ("2^{10}", ["1024", r"\boxed{1024}"], [r"x \equiv 5 \pmod{1024}", r"\boxed{5\mid 1024}", "x > 1024"]),
        (r"1,2,\ldots,8", [r"\boxed{1, 2, \dots, 8}", "1,2,...,8"], [r"\boxed{1,2,8}", r"1,2,\ldots,9"]),
        (r"\langle 1,2\rangle", [r"\boxed{\langle 1, 2 \rangle}", "$(1,2)$"], [r"\langle 2,1\rangle", "1.2"]),
        (r"x=1\lor x=2", [r"$x=1$ or $x=2$", r"\boxed{x = 2 \text{ or } x = 1}"], [r"x=1\lor x=3"]),
        ("n(n+1)/2", ["So the sum is n(n+1)/2.", r"\boxed{\frac{n^2+n}{2}}"], ["n(n+1)", "(n+1)/2"]),
        ("x > 6", [r"\boxed{6 < x}", "The answer is x > 6."], ["x < 6", r"x \ge 6"]),
        ("12", ["12", "<x>12", "$x = 12$"], ["x > 12", r"\boxed{x \ge 12}", "12 < x", "x ≠ 12", r"\boxed{3 \mid 12}"]),
        ("AB = 5", ["5", r"\boxed{AB = 5}"], ["6"]),
        ("10", [r"\boxed{10\operatorname{km}}", "10 sec"], [r"\boxed{10\operatorname{sech}x}"]),
    ],
)
def test_formulas_are_read_whole(answer, right, wrong):
    assert [is_correct(completion, answer) for completion in right] == [True] * len(right)
    assert [is_correct(completion, answer) for completion in wrong] == [False] * len(wrong)
