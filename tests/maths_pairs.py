"""Completions, right answers, and whether the one answers the other: what the maths reward must think of each."""

RIGHT, WRONG = True, False

# Form -> (answer, completions that are right, completions that are wrong).
PAIRS: dict[str, list[tuple[object, list[str], list[str]]]] = {
    "a bare number": [
        ("12", ["12", "12.", " 12 ", "+12", "12.0", "12.00", "012"], ["13", "-12", "1.2", "120", "", "no idea"]),
        ("-5", ["-5", "- 5", "minus 5", "negative 5"], ["5", "+5"]),
    ],
    "Markdown emphasis": [
        ("12", ["**12**", "*12*", "`12`", "__12__", "_12_", "***12***", "<b>12</b>", "The answer is **12 apples**."], []),
        ("12", ["The answer is **12**. It took me 3 steps.", "The answer is *12*. It took me 3 steps."], ["**13**"]),
        ("3", [], ["The answer is **12**. It took me 3 steps.", "The answer is `12`. It took me 3 steps."]),
        ("12", ["**Answer:** 12", "**Answer**: 12", "**Final Answer:** **12**", "### Answer: 12"], ["**Answer:** 13"]),
    ],
    "commas between thousands": [
        ("1234567", ["1,234,567", "12,34,567", r"1{,}234{,}567", r"1,\!234,\!567"], ["1,234", "1,234,568"]),
        (r"\$32,\!348", ["32348", "32,348", r"\$32,\!348"], ["32", "348", "32.348"]),
    ],
    "other marks between thousands": [
        ("1234", [r"\boxed{1\,234}", r"\boxed{1 234}", "1 234", "1'234", "1_234", "1\u202f234", "1\u00a0234"], ["1 235"]),
        ("12345", [r"\boxed{12 345}", r"\boxed{12\,345}", r"\boxed{12~345}", r"\boxed{12\;345}"], [r"\boxed{12 346}"]),
        ("1234567", ["1.234.567"], ["1.234"]),
    ],
    "decimals": [
        ("0.5", [".5", "0.50", "0.5."], ["5", "0.05", "0.51"]),
        ("3.5", ["3,5", "3.5", "3,50"], ["35", "3", "5"]),
        ("1234.5", ["1,234.50", "1.234,50", "1234,5"], ["12345", "1.2345"]),
        ("15", [], ["1,5", "1.5"]),
    ],
    "units": [
        ("10", [r"\boxed{10~\mathrm{km/h}}", r"\boxed{10 m^2}", r"\boxed{10\text{ cm}^3}", "10 km/h", "10 m/s^2"], []),
        ("10", ["10 apples", "10 m", "10 K", "10 kg·m", "10 square meters", "10°C", r"\boxed{10^\circ}"], ["9 apples"]),
        ("10 km/h", ["10", "10 km/h", r"\boxed{10~\mathrm{km/h}}"], ["9 km/h", "1"]),
        ("12 apples", ["12", "12 apples", "She has 12 apples."], ["13 apples"]),
        (r"25\pi", [r"25\pi cm^2", r"\boxed{25\pi\,m^2}", r"$25\pi$ cm^2", r"The area is $25\pi\,cm^2$."], [r"25\pi x^2"]),
        (r"25\pi", [r"\boxed{25\pi\text{ cm}^2}", r"\boxed{25\pi~in}"], [r"24\pi cm^2", r"25\pi^2 cm^2", "25 cm^2"]),
        (r"3\sqrt{5}", [r"The answer is 3\sqrt{5} km/h", r"\boxed{3\sqrt{5}\,m/s^2}", r"3\sqrt{5} mph"], [r"3\sqrt{6} km/h"]),
        (r"25\pi cm^2", [r"\boxed{25\pi}", r"25\pi cm^2"], [r"\boxed{24\pi cm^2}"]),
        (r"25\pi", [r"25\pi \text{ square centimeters}", "25π square feet", r"25\pi \text{ sq cm}", r"\boxed{25\pi~\text{rad/s}}"], []),
        (r"25\pi", [r"\boxed{25\pi \operatorname{cm}^2}", "The answer is 25\\pi square meters. It took long."], [r"25\pi n"]),
        (r"25\pi", ["So it's 25π cubic centimeters.", "So that’s 25π.", "It's 25π cm^3."], ["So it's 24π cubic centimeters."]),
        (r"25\pi\text{ square units}", [r"\boxed{25\pi}", r"\boxed{25\pi \text{ cm}^2}"], [r"\boxed{26\pi}"]),
        (r"\frac{\pi}{2}", [r"\boxed{\frac{\pi}{2}\text{ radians}}", r"\frac{\pi}{2} rad"], [r"\frac{\pi}{3} rad"]),
        ("12", ["12km", "12kg", "12pcs", "12 a day", r"\boxed{12pm}", "12 A", "12m", "12 people"], ["12ab", "12 b"]),
    ],
    "variables that look like units": [
        (r"\pi r^2 h", [r"\boxed{\pi h r^2}", r"$V = \pi r^2 h$", r"\boxed{\pi r^2h}"], [r"\boxed{\pi r^2}", r"\boxed{\pi rh}"]),
        ("2ab", [r"\boxed{2ab}", r"\boxed{2ba}", "$2ab$", "The answer is $2ab$."], ["2", r"\boxed{2}", r"\boxed{2a}", r"\boxed{2abc}"]),
        ("3ab^2", [r"\boxed{3ab^2}", r"\boxed{3 a b^2}"], ["3", r"\boxed{3ab}", r"\boxed{3a^2b}", "The answer is 3."]),
        (r"\frac{1}{2} a b m", [r"\boxed{\frac{abm}{2}}"], [r"\boxed{\frac{1}{2}}", "0.5", r"\boxed{\frac{ab}{2}}"]),
        ("2 i", [r"\boxed{2i}", r"\boxed{2 i}"], ["2", r"\boxed{-2i}"]),
        ("2 ab", ["2 ab", "2ab", r"\boxed{2ab}", "The answer is 2 ab."], ["2", r"\boxed{2}", "2 apples", "3 ab"]),
        ("3 xyz", [r"\boxed{3xyz}", "So it's 3 xyz."], ["3", r"\boxed{3 xy}"]),
        ("12", ["12 cc", "12 ac", "12 by then", "12 cabs", "12 pc."], ["12 xy", "The answer is 12 ab.", "12 abc"]),
        ("3 x m", [r"\boxed{3xm}"], ["3", r"\boxed{3x}"]),
        ("3", [], [r"\boxed{3ab}", r"\boxed{3 a}", "The answer is 3ab", "3 b", r"\boxed{3bc^2}"]),
    ],
    "currencies": [
        ("1234.5", ["$1,234.50", r"\boxed{\$1,234.50}", "€1,234.50", "1234.5 dollars", "US$1,234.50"], ["$1,234"]),
        ("-5", ["-$5", "$-5", r"-\$5"], ["$5"]),
        ("$18", ["18", "$18", "18 dollars", r"\$18.00"], ["$81"]),
    ],
    "percent": [
        ("25", ["25%", r"\boxed{25\%}", "25 percent", "25 per cent"], ["2.5%", "26%"]),
        ("0.25", ["25%", r"25\%", "0.25"], ["2.5%", "26%"]),
        ("25%", ["25", "25%", "0.25"], ["2.5", "26%"]),
    ],
    "scales": [
        ("2000000", ["2 million", "2,000,000", "2 million dollars"], ["2", "2 billion", "2 thousand"]),
        ("1.5 million", ["1500000", "1.5 million"], ["1.5", "15 million"]),
        ("60", ["5 dozen"], ["5", "12"]),
        ("10000", ["10k", "10 thousand"], ["10", "10 K"]),
    ],
    "minus signs": [
        ("-5", ["The answer is −5", "The answer is –5", "−5", r"$-5$", "The answer is - 5", "－5"], ["The answer is 5"]),
        ("−5", ["-5", "The answer is −5."], ["5"]),
        ("5", ["5"], ["−5", "–5"]),
    ],
    "brackets and quotes": [
        ("5", ["The answer is (5)", "(5)", r"\boxed{(5)}", "The answer is [5]", "The answer is '5'", 'It is "5"'], ["(6)"]),
    ],
    "remarks": [
        ("42", ["#### 42 (since 6*7)", "The answer is 42 (six times seven, 6*7)", "#### 42, because 6*7 = 42"], []),
        ("12", ["The answer is 12 because 3 * 4 = 12", "The answer is 12, since 24 / 2 = 12."], []),
        ("12", ["The answer is 12, not 13", "The answer is not 13 but 12"], ["The answer is not 12", "The answer is 13, not 12"]),
        ("5", ["The answer is 5!", "The answer is 5 :)"], []),
        ("120", [], ["The answer is 5!"]),
    ],
    "hashes": [
        ("42", ["#### 42", "####42", "6 * 7 = 41?\n#### 42", "#### $42.00", "#### 42 dollars"], ["#### 41", "42\n#### 41"]),
    ],
    "answer tags": [
        ("12", ["<answer>12</answer>", "<think>13</think><answer> 12 </answer>", "<answer>The answer is 12.</answer>"], []),
        ("12", [], ["12 <answer>13</answer>", "<answer>12 + 11 + 4</answer>", "<think>12</think> 13"]),
        ("27", [], ["<answer>12 + 11 + 4</answer>"]),
    ],
    "boxes": [
        ("4", [r"first \boxed{3}, no: \boxed{4}", r"\boxed{4} and \boxed{", r"$\boxed{ 4 }$.", r"\boxed 4", r"\fbox{4}"], []),
        ("4", [r"\boxed{x = 4}", r"\boxed{\text{4}}", r"\boxed{\textbf{4}}", r"\boxed{2 + 2 = 4}"], [r"\boxed{4}, no: \boxed{3}"]),
        ("13", [], [r"\boxed{12, 13}", r"\boxed{12 \text{ or } 13}", r"\boxed{x=12, y=13}", r"\boxed{13n}", r"\boxed{13\pi}"]),
    ],
    "stated in a sentence": [
        ("12", ["The answer is 12.", "The final answer is: 12", "So the answer would be 12 apples.", "Answer = 12"], []),
        ("12", ["The answer to the question is 12.", "The answer is that 3 children get 12 apples.", "the answer is ~12"], []),
        ("12", ["The answer is 12. I hope my answer is right.", "The answer is 12 apples for 3 people."], []),
        ("12", ["Answer:\n\n12", "The answer is below.\n\n12", "The answer is 12\n\nQuestion: what is 3 + 4?"], []),
        ("12", [], ["The answer is 12. No: the answer is 13.", "The answer is 13. It is not 12."]),
    ],
    "no mark at all": [
        ("1234", ["Therefore she has 1,234 clips in total.", "First 5, then 7: that makes 1,234."], ["It was 1,234. Now it is 5."]),
        ("12", ["In 2019, 12 people came.", "Then\n\\[\n12\n\\]\n", "We get $x = 12$."], ["Tom has 12 and gives 5."]),
    ],
    "typographic signs": [
        (r"\sqrt{3}", ["√3", "√(3)", r"\boxed{√3}", "The answer is √3.", "Result: √3 cm", "sqrt(3)"], ["√2", "3", "∛3", "√9"]),
        (r"\frac{1+\sqrt{5}}{2}", ["(1+√5)/2", r"\boxed{(1 + √5)/2}", "½(1 + √5)"], ["(1-√5)/2", "(1+√3)/2"]),
        ("x^2 - 5x + 6", ["x² − 5x + 6", "The answer is x² - 5x + 6."], ["x³ − 5x + 6", "x2 - 5x + 6"]),
        (r"4 \pm \sqrt{6}", ["4 ± √6", r"\boxed{4 + √6, 4 − √6}"], ["4 ± √5", "4 + √6"]),
        (r"(-\infty, 3]", ["(−∞, 3]", r"\boxed{(-∞, 3]}"], ["(−∞, 3)", "(3, ∞)"]),
        (r"x \in [1, 4]", ["x ∈ [1, 4]", "The answer is x ∈ [1,4]."], ["x ∈ [1, 5]"]),
        (r"2\pi", ["2π", "2·π", "2pi", "2*pi", "The answer is 2 pi."], ["2", "pi", "3pi"]),
        ("2", [], ["2pi", "The answer is 2pi.", "The answer is 2 pi.", "The answer is 2ab.", "2√3", "√4"]),
        ("12", ["The answer is 12gal.", "12 oz.", "12pct."], ["12√2"]),
        ("-5", ["it's -5 degrees", "So it’s -5.", "Total: −5"], ["x - 5", "10 -5"]),
    ],
    "labels": [
        ("12", ["Total: 12", "Result: 12", "The result is: 12", "So we have: $12$", "ans: 12", "Cost (in $): 12"], ["Total: 13"]),
        ("12", ["Step 3: 12", "Day 3: 12 apples", "Question 1: 12", "Sum: **12**", "Total:12"], ["It is 12:13", "3:12", "3 : 12"]),
        ("155", ["Total: 80 + 75 = 155"], ["Total: 80 + 75", "Result: 155 or 156"]),
    ],
    "equations": [
        ("155", ["80 + 75 = 155", "The answer is 80 + 75 = 155.", "155 = 80 + 75", "80 + 75 ≈ 155", r"\[ 80 + 75 = 155 \]"], []),
        ("x = 5", ["5", "x = 5", "x=5"], ["x = 6", "6"]),
        ("5", ["x = 5", "$x=5$", "The answer is x = 5."], ["x = 6", "5x"]),
    ],
    "expressions that must still be evaluated": [
        ("155", [], ["The answer is 80 + 75", "80 + 75 =", "80+75", r"\boxed{80 + 75}", "#### 80 + 75", "$80 + $75"]),
        ("155", [], ["The answer is (80 + 75)", "The answer is 80 + 75 dollars", "What is 80 + 75?", "80 plus 75"]),
        ("12", [], ["3 * 4", r"\boxed{3\cdot 4}", r"\boxed{3 \times 4}", "3 x 4", "3x4", "3×4", "The answer is 3 times 4"]),
        ("12", [], ["24/2", "The answer is 24 / 2", r"\boxed{\frac{24}{2}}", "(3)(4)", "3(2+2)", "24÷2", "17 - 5"]),
        ("4", [], [r"\boxed{\sqrt{16}}", r"\boxed{2^2}", "2 squared", "2**2", "2²", "10 - 6", "6 - 2"]),
    ],
    "parts of expressions": [
        ("75", [], ["80 + 75", "The answer is 80 + 75", "80 - 75", "80 * 75", r"\sqrt{75}", "75x", "75 * 2", "75^2"]),
        ("80", [], ["80 + 75", "The answer is 80 + 75", r"\boxed{80 + 75}", "80 / 75", "80:75", "80(2 + 3)"]),
        ("-5", [], ["10 - 5", "10 -5", "x - 5"]),
    ],
    "several numbers": [
        ("12", [], ["It is 1 or 2 or 3 ... or 12", "1, 2, 3, 12", "The answer is 12 or 13", "The answer is 12, 13, 14"]),
        ("1", [], ["The answer is 1 or 2 or 3 ... or 12", "The answer is 1, 2, 3 or 12", "The answer is 1 2 3 12"]),
        ("6", [], ["x = 5 or x = 6", "The answer is 5 and 6", "The answer is 5 to 6", r"\boxed{5, 6}", r"\boxed{\{5, 6\}}"]),
    ],
    "fractions": [
        ("3/4", [r"\boxed{\frac{3}{4}}", r"\boxed{\dfrac34}", "3/4", "0.75", "75%", "¾", "The answer is\n\\[\n\\frac{3}{4}\n\\]"], []),
        ("0.75", ["3/4", r"\frac{3}{4}", "6/8"], ["4/3", "3/5", "3"]),
        ("-0.75", [r"\boxed{-\frac{3}{4}}", r"\boxed{\frac{-3}{4}}", "-3/4"], ["3/4"]),
        (r"\frac{2}{4}", ["1/2", r"\frac{1}{2}", "0.5"], [r"\frac{1}{4}", "2"]),
    ],
    "mixed numbers": [
        ("2.5", ["2 1/2", r"\boxed{2\frac{1}{2}}", "2½", "The answer is 2 1/2 cups."], ["1/2", "2", "21/2"]),
    ],
    "scientific notation": [
        (0.00001, ["0.00001", "10^{-5}", "1e-05", "1E-5", "10⁻⁵", r"1 \times 10^{-5}", r"$10^{-5}$"], ["1e-6", "0", "10", "-5"]),
        (1e16, ["10000000000000000", "1e16", "10^16", r"\boxed{10^{16}}", "10,000,000,000,000,000"], ["1e15", "16", "1"]),
        ("1500", ["1.5e3", "1.5 x 10^3", r"1.5 \cdot 10^{3}", "1.5×10³"], ["1.5", "1.5e2", "10^3"]),
    ],
    "rounding": [
        ("1/3", ["0.3333333", "0.333333333"], ["0.333", "0.33", "0.34"]),
        ("1.414214", ["1.41421356", "1.414214"], ["1.4142", "1.5"]),
        ("12", ["11.999999999999998", "12.0"], ["11.9999", "12.0001", "12.5"]),
        ("1000000", [], ["1000000.5", "1000001"]),
        ("1234567.8", ["1234567.80"], ["1234567.9"]),
        (2e-7, ["0.0000002"], ["1e-7", "0.0000001", "0"]),
        (str(10**20), [str(10**20)], [str(10**20 + 1)]),
    ],
    "numbers from JSON": [
        (42, ["42", "42.0", "The answer is 42."], ["43"]),
        (4.5, ["4.5", "4.50", "9/2"], ["4", "45"]),
        (7.0, ["7", "7.0"], ["70"]),
        (-3, ["-3", "−3"], ["3"]),
        (123456789012345678, ["123456789012345678"], ["123456789012345679"]),
    ],
    "exact forms": [
        ("1/2^{98}", ["$1/2^{98}$", r"\boxed{\frac{1}{2^{98}}}", r"\boxed{2^{-98}}"], ["$1/2^{99}$", r"\boxed{\frac{1}{2^{98}+1}}"]),
        (r"\sqrt{2}", [r"\boxed{\sqrt{2}}", r"\boxed{\frac{\sqrt{8}}{2}}", r"\boxed{1.4142136}"], [r"\boxed{1.41}", r"\boxed{\sqrt{3}}"]),
        (r"10^7\sqrt{2}", [r"\boxed{14142135.62}"], [r"\boxed{14142235.62}"]),
        (r"2\pi", [r"\boxed{2\pi}", r"\boxed{6.2831853}"], [r"\boxed{6.28}", r"\boxed{\pi}"]),
        ("2^{10}", [r"\boxed{1024}", r"\boxed{2^{10}}"], [r"\boxed{1025}"]),
    ],
    "formulas": [
        ("$(x+1)^2$", [r"\boxed{x^2 + 2x + 1}", "The answer is $(x+1)^2$. It took me 3 steps."], [r"\boxed{x^2 + 2x}"]),
        ("y = 2x+1", [r"\boxed{y=2x+1}", r"\boxed{2x+1}"], [r"\boxed{2x-1}"]),
        ("3+4i", [r"\boxed{3+4i}", r"\boxed{4i+3}"], [r"\boxed{3-4i}"]),
        ("The root is \\boxed{\\sqrt{5}}", [r"$\boxed{\sqrt{5}}$"], [r"$\boxed{5}$"]),
    ],
    "tuples, sets, intervals, matrices": [
        ("(1, 2)", [r"\boxed{(1,2)}", "The answer is (1, 2)."], [r"\boxed{(2,1)}"]),
        (r"\{1,2\}", [r"\boxed{\{2,1\}}"], [r"\boxed{\{1,3\}}", r"\boxed{1}"]),
        ("[0,1)", [r"\boxed{[0, 1)}"], [r"\boxed{[0, 1]}"]),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", [r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"], [r"\boxed{\begin{pmatrix}1\\3\end{pmatrix}}"]),
    ],
    "choices": [
        ("B", ["The answer is B", "B", "(B)", "b)", "The answer is **(B)**.", "Option B", "The correct answer is option B."], []),
        ("B", ["B. 12", "The answer is (B) 12 km", r"\boxed{B}", r"\boxed{\text{(B)}}", r"\boxed{\textbf{(B)}\ 12}", "Answer: B"], []),
        ("B", ["So it's B.", "It is option B.", "So that's choice (B)."], ["It is option C.", "Choose an option.", "It is an option"]),
        ("B", ["The answer is B because A is wrong"], ["The answer is C", "C", "(A)", r"\boxed{A}", "The answer is Bob"]),
        ("A", [], ["The answer is a dog", "A dog", "The answer is an A or a B"]),
    ],
    "words": [
        ("Paris", ["The answer is Paris.", "paris", r"\boxed{\text{Paris}}"], ["The answer is London", "Not Paris but London"]),
        ("Maria", ["So it's Maria.", "That's Maria."], ["So it's not Maria.", "So it's Maria's dog.", "So it's Jonas."]),
        ("yes", ["Yes", "The answer is yes, because 3 > 2."], ["no", "The answer is no."]),
        ("no", ["no"], ["The answer is no solution"]),
        ("no solution", [r"\boxed{\text{no solution}}", "The answer is no solution."], ["The answer is 0"]),
        ("3:45", ["The answer is 3:45"], ["The answer is 3:54"]),
    ],
    "whole solutions as answers": [
        ("16 - 3 - 4 = 9, and 9 * 2 = $18.\n#### 18", ["18", "#### 18", "The answer is $18."], ["9", "16"]),
        (r"So we get \boxed{\frac{1}{2}}.", ["1/2", "0.5"], ["2"]),
    ],
    "too long to be meant": [
        ("1", ["1\n" * 2000], ["1" * 5000, "1 " * 5000, r"\boxed{" * 5000, "10^{999999999}", "1e999999999"]),
    ],
}  # fmt: skip


def all_pairs() -> list[tuple[str, object, str, bool]]:
    """Return (form, answer, completion, whether it is right)."""
    return [
        (form, answer, completion, truth)
        for form, rows in PAIRS.items()
        for answer, right, wrong in rows
        for truth, completions in ((RIGHT, right), (WRONG, wrong))
        for completion in completions
    ]
