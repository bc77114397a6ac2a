"""The texts that the embedded model learns from: problems, and answers in styles of differing reliability.

A base model has read many people: some blurt out an answer, some write one check, some search until they are sure, and
some are careless. So does this one. The questions are word for word those of reasoning-gym's ``countdown`` (three
numbers) and ``chain_sum``; the generator is our own, since reasoning-gym's needs sympy for each problem.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from random import Random

MAX_VALUE = 12
MAX_TARGET = 99

INSTRUCTIONS = """

Final answer format instructions:
1. Provide your solution as a arithmetic expression (no '=' sign).
2. Do not include the target number in the expression.
3. Use '*' for multiplication.
4. Use '/' for division.
5. Do not include any other text or formatting.
"""
TEMPLATES = (
    ("Using all the numbers {numbers}, create an expression that equals {target}.\nYou can only use each number once."),
    "Find a way to make {target} using all of these numbers: {numbers}.\nEach number can only be used once.",
    "Calculate {target} using all of these numbers: {numbers}.\nEach number may be used at most once.",
)
CHAIN_SUM = "State the final answer to the following arithmetic problem: {expression} ="

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x // y,
}


@dataclass(frozen=True)
class Document:
    """A question, an answer and the style in which it is given."""

    question: str
    answer: str
    style: str


@dataclass(frozen=True)
class Plan:
    """``(x first y) then z``, the only shape that reasoning-gym asks for."""

    x: int
    first: str
    y: int
    then: str
    z: int

    @property
    def middle(self) -> int:
        """The value of the first step."""
        return OPERATORS[self.first](self.x, self.y)

    @property
    def value(self) -> int:
        """The value of the whole."""
        return OPERATORS[self.then](self.middle, self.z)

    @property
    def step(self) -> str:
        """The first step with its value."""
        return f"{self.x} {self.first} {self.y} = {self.middle}"

    @property
    def expression(self) -> str:
        """As the verifier wants it, with brackets only where they are needed."""
        pair = f"{self.x} {self.first} {self.y}"
        needs_brackets = self.then in "*/" and self.first in "+-"
        return f"({pair}) {self.then} {self.z}" if needs_brackets else f"{pair} {self.then} {self.z}"


@dataclass(frozen=True)
class Problem:
    """Three numbers and what to make of them."""

    numbers: tuple[int, int, int]
    target: int

    def question(self, template: str) -> str:
        """Return the question as reasoning-gym words it."""
        numbers = ", ".join(map(str, self.numbers))
        return template.format(numbers=numbers, target=self.target) + INSTRUCTIONS

    @property
    def held_out(self) -> bool:
        """Whether these three numbers are kept out of all training texts (one triple in five)."""
        key = ",".join(map(str, sorted(self.numbers)))
        return hashlib.sha256(key.encode()).digest()[0] % 5 == 0


def draw_problem(rng: Random) -> Problem:
    """Draw as reasoning-gym does: random operators from left to right, division only where it leaves no rest."""
    while True:
        numbers = [rng.randint(1, MAX_VALUE) for _ in range(3)]
        value = numbers[0]
        for i in (1, 2):
            operator = rng.choice("+-*/")
            if operator == "/":
                divisors = [n for n in numbers[i:] if value % n == 0]
                if divisors:
                    numbers[i] = rng.choice(divisors)
                else:
                    operator = "-"
            value = OPERATORS[operator](value, numbers[i])
        if 1 <= value <= MAX_TARGET:
            rng.shuffle(numbers)
            return Problem((numbers[0], numbers[1], numbers[2]), value)


def plans(numbers: tuple[int, int, int]) -> list[Plan]:
    """Return every way to use the numbers, in the order in which a search tries them: all sums first, then differences.

    Values are whole and not negative, and the larger number of the first step comes first: nothing is lost by that.
    """
    found = []
    for first, (i, j, k) in product("+-*/", ((0, 1, 2), (0, 2, 1), (1, 2, 0))):
        x, y = sorted((numbers[i], numbers[j]), reverse=True)
        z = numbers[k]
        if first == "/" and x % y:
            continue
        middle = OPERATORS[first](x, y)
        operators = "+*" + ("-" if middle >= z else "") + ("/" if middle % z == 0 else "")
        found += [Plan(x, first, y, then, z) for then in operators]
    return found


def answer_direct(plan: Plan) -> str:
    """Answer at once: everything has to be found in the head."""
    return f"<answer>{plan.expression}</answer>"


def answer_plain(plan: Plan) -> str:
    """Answer in words, without the tags that the verifier looks for."""
    return f"The answer is {plan.expression}."


def answer_worked(plan: Plan) -> str:
    """Write down two steps, then answer."""
    return f"First {plan.step}, then {plan.middle} {plan.then} {plan.z} = {plan.value}\n{answer_direct(plan)}"


def answer_search(plan: Plan, misses: list[str]) -> str:
    """Try first steps one after another, dismiss those that cannot lead to the target, then answer."""
    tried = "".join(f" {step} no\n" for step in misses)
    return f"Try{tried} {plan.step}, {plan.middle} {plan.then} {plan.z} = {plan.value}\n{answer_direct(plan)}"


def misses_before(plan: Plan, options: list[Plan]) -> list[str]:
    """Return the different first steps that a search tries before this plan's."""
    steps = list(dict.fromkeys(option.step for option in options))
    return steps[: steps.index(plan.step)]


@dataclass(frozen=True)
class Mixture:
    """How often each style is used, and how often its author is careless (his plan may miss the target)."""

    weights: dict[str, float]
    careless: dict[str, float]


# First much of everything, so that all styles are learnt ...
PRETRAINING = Mixture(
    weights={"direct": 0.20, "plain": 0.05, "worked": 0.20, "search": 0.55},
    careless={"direct": 0.20, "plain": 0.20, "worked": 0.10, "search": 0.02},
)
# ... and then the habits of a base model: it mostly blurts out an answer, in words rather than in tags.
HABITS = Mixture(
    weights={"direct": 0.15, "plain": 0.36, "worked": 0.19, "search": 0.30},
    careless={"direct": 0.20, "plain": 0.20, "worked": 0.10, "search": 0.02},
)
DEMONSTRATIONS = Mixture(
    weights={"direct": 0.50, "worked": 0.20, "search": 0.30},
    careless={"direct": 0.05, "worked": 0.02, "search": 0.0},
)


def countdown(rng: Random, mixture: Mixture) -> Document:
    """Write one answered Countdown problem, never one that is held out."""
    problem = draw_problem(rng)
    while problem.held_out:
        problem = draw_problem(rng)
    options = plans(problem.numbers)
    style = rng.choices(list(mixture.weights), weights=list(mixture.weights.values()))[0]
    careless = rng.random() < mixture.careless[style]
    plan = rng.choice(options) if careless else next(plan for plan in options if plan.value == problem.target)
    writers = {"direct": answer_direct, "plain": answer_plain, "worked": answer_worked}
    answer = answer_search(plan, misses_before(plan, options)) if style == "search" else writers[style](plan)
    return Document(problem.question(rng.choice(TEMPLATES)), answer, style)


def chain_sum(rng: Random) -> Document:
    """Write one answered ``chain_sum`` problem of two or three digits."""
    numbers = [rng.randint(0, 9) for _ in range(rng.choice((2, 3)))]
    expression, value = str(numbers[0]), numbers[0]
    for number in numbers[1:]:
        operator = rng.choice("+-")
        expression += f" {operator} {number}"
        value = OPERATORS[operator](value, number)
    return Document(CHAIN_SUM.format(expression=expression), f"<answer>{value}</answer>", "chain_sum")


def one_step(rng: Random) -> Document:
    """Ask which single operation on two numbers gives the target: the skill that a search needs."""
    while True:
        operator = rng.choice("+-*/")
        x = rng.randint(0, 2 * MAX_VALUE) if rng.random() < 0.7 else rng.randint(0, MAX_VALUE**2)
        y = rng.randint(1, MAX_VALUE)
        if operator == "/" and x % y:
            continue
        value = OPERATORS[operator](x, y)
        if 1 <= value <= MAX_TARGET:
            return Document(f"From {x} and {y} make {value}: ", f"{x} {operator} {y} = {value}", "one_step")


def products(rng: Random) -> Document:
    """Recite the table: sums, differences, products and quotients of two small numbers."""
    x, y = sorted((rng.randint(1, MAX_VALUE), rng.randint(1, MAX_VALUE)), reverse=True)
    operator = rng.choice("+-**/")
    if operator == "/":
        x *= y
    return Document(f"{x} {operator} {y} =", f" {OPERATORS[operator](x, y)}", "table")


def pretraining_document(rng: Random, mixture: Mixture = PRETRAINING) -> Document:
    """Draw one text: mostly Countdown in the styles of the mixture, and some small arithmetic."""
    task = rng.choices(("countdown", "chain_sum", "one_step", "table"), weights=(76, 8, 8, 8))[0]
    if task == "countdown":
        return countdown(rng, mixture)
    return {"chain_sum": chain_sum, "one_step": one_step, "table": products}[task](rng)


if __name__ == "__main__":
    source = Random(0)
    for _ in range(12):
        document = pretraining_document(source)
        print(f"--- {document.style}\n{document.question}|{document.answer}")
