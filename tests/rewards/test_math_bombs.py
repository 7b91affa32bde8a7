"""Texts made to hang, exhaust, execute or poison the judge of mathematics: each gets a verdict, and at once."""

from __future__ import annotations

import gc
import math
import resource
import time
from pathlib import Path

import pytest

from rewards.math import correct
from rewards.math.answers import boxed, final_answers
from tests.bench._math_pairs import pairs

NINES = "9" * 60
BOMBS = [
    *(
        "9**9**9**9",
        f"2**{NINES}",
        f"2**-{NINES}",
        "1e999999999",
        "factorial(10**8)",
        "100000000!",
        "binomial(10**9,5*10**8)",
    ),
    *(
        "fibonacci(10**9)",
        "primorial(10**7)",
        "Sum(1/x,(x,1,10**9)).doit()",
        "isprime(10**6000+7)",
        "+".join(["sin(x)"] * 40),
    ),
    *("(" * 140 + "1" + ")" * 140, "9" * 299, "9^9^9^9", "5^(5^(5^(5^5)))", "10**10**10", "exp(exp(exp(exp(9))))"),
    *(f"2^{{{NINES}}}", rf"2\^{{{NINES}}}", f"1e{NINES}", f"1e-{NINES}", rf"2\times10^{{{NINES}}}", f"({NINES})!"),
    *(
        rf"\sqrt[{NINES}]{{2}}",
        f"{NINES}!!",
        "9!!!!!!!!",
        "((9!)!)!",
        rf"\binom{{{NINES}}}{{{NINES[:-1]}}}",
        rf"x^{{{NINES}}}",
    ),
    *(
        rf"\sum_{{n=1}}^{{{NINES}}} n",
        rf"\prod_{{n=1}}^{{{NINES}}} n",
        rf"\overline{{{NINES}}}",
        rf"0.\overline{{{NINES}}}",
    ),
    *(r"\frac{1}{1+" * 30 + "1" + "}" * 30, r"\frac{" * 60, r"\frac1" * 60, r"\sqrt{" * 38 + "2" + "}" * 38, "|" * 300),
    *(
        r"\begin{pmatrix}" + "&".join("1" * 100) + r"\end{pmatrix}",
        r"\{" * 100 + r"\}" * 100,
        "[0,1)" * 60,
        "(1," * 39 + "1" + ")" * 39,
    ),
    *(
        r"\cup".join(["(0,1)"] * 30),
        ",".join("x" * 150),
        ",".join(["x+1", "x+2"] * 37),
        r"\pm" * 90 + "1",
        "-" * 299 + "1",
    ),
    *(
        "+".join(["2^{2000}"] * 33),
        "*".join(["2^{8000}"] * 30),
        "+".join(["1/7^{900}"] * 33),
        "+".join(["2^{1200}x"] * 30),
    ),
    *("+".join([r"\sin x"] * 48), "+".join([r"\sqrt x"] * 48), r"\sin " * 59 + "x", r"\tan(" * 38 + "1" + ")" * 38),
    *(
        "(1+10^{-300})^{10^{30}}",
        r"(1+\sqrt2)^{999999999}",
        r"\sqrt2^{\sqrt2^{\sqrt2^{\sqrt2^{99}}}}",
        "x^{x^{x^{x^{x^x}}}}",
    ),
    *(
        "e^{e^{e^{e^{e}}}}",
        r"i^{i^{i^{i}}}",
        "0^0",
        "0^{-1}",
        "1/0",
        r"\log_1 5",
        r"\log 0",
        r"\tan 90^\circ",
        "1/(x-x)",
    ),
    *(
        "(x+1)^{8000}",
        "((((x+1)^9)^9)^9)^9",
        "(x+y+z+a+b+c)^{500}",
        "7^{2900}+x",
        r"\ln " * 70 + "2",
        "x" * 300,
        "=" * 300,
    ),
    *(
        "1=" * 149 + "1",
        "x<" * 149 + "x",
        "1" + "," * 299,
        "1 " * 150,
        "1e1" * 100,
        "1,111" * 60,
        "e1" * 150,
        ".1" * 150,
    ),
    *(
        "\x00" * 300,
        "\ud800" * 300,
        "٣" * 300,
        "\\" * 299,
        "\\," * 150,
        "$" * 300,
        "{" * 300,
        "}" * 300,
        r"\text{" * 60,
    ),
    *(
        r"\lfloor" * 42,
        r"\gcd(" + "9" * 90 + "," + "9" * 91 + ")",
        r"\max(" + ",".join("1" * 140) + ")",
        "!" * 300,
        "^" * 300,
    ),
]
HELD_IN = {
    "response": lambda bomb: (rf"\boxed{{{bomb}}}", "7"),
    "reference": lambda bomb: (r"\boxed{7}", bomb),
    "both": lambda bomb: (rf"\boxed{{{bomb}}}", bomb),
    "against its like": lambda bomb: (rf"\boxed{{{bomb}+0}}", bomb),
}


def test_every_bomb_has_a_verdict_within_milliseconds_and_leaves_no_memory() -> None:
    correct(r"\boxed{\sin 1}", "2")
    gc.collect()
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for bomb in BOMBS:
        for place in HELD_IN.values():
            response, reference = place(bomb)
            start = time.thread_time()
            verdict = correct(response, reference)
            times.append(time.thread_time() - start)
            assert verdict in ({"correct": 0.0}, {"correct": 1.0}, None)
            if place is HELD_IN["response"]:
                assert verdict == {"correct": 0.0}, bomb
    assert len(times) >= 300
    assert sorted(times)[math.floor(0.99 * len(times))] <= 0.05
    assert max(times) <= 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 64 * 1024


PAYLOADS = [
    "__import__('os').system('touch {m}')",
    "open('{m}','w')",
    "open('{m}','w').write('x')",
    "eval(\"open('{m}','w')\")",
    "exec(\"open('{m}','w')\")",
    "(lambda: open('{m}','w'))()",
    "[open('{m}','w') for x in [1]]",
    "().__class__.__base__.__subclasses__()[0]; open('{m}','w')",
    "getattr(__builtins__,'open')('{m}','w')",
    "compile(\"open('{m}','w')\",'','exec')",
]
DRESSES = ["{}", "sin({})", r"\text{{{}}}", "pi*{}", r"\frac{{{}}}{{1}}"]


@pytest.mark.parametrize("judge", ["", "math_verify"])
def test_no_payload_is_ever_executed(tmp_path: Path, judge: str) -> None:
    if judge:
        pytest.importorskip(judge)
    marker = tmp_path / "m"
    texts = [dress.format(payload.replace("{m}", str(marker))) for payload in PAYLOADS for dress in DRESSES]
    assert len(set(texts)) == 50
    open(marker, "w").close()  # the canary can sing
    assert marker.exists()
    marker.unlink()
    for text in texts:
        for response, reference in ((text, "1"), ("1", text), (text, text)):
            for marked in (rf"\boxed{{{response}}}", f"#### {response}", f"The answer is {response}"):
                correct(marked, reference, anywhere=True, second_opinion=judge)
    assert not marker.exists()


def test_a_poisoned_sample_changes_no_later_verdict() -> None:
    honest = pairs(60, seed=1)

    def verdicts() -> list[dict[str, float] | None]:
        return [correct(rf"\boxed{{{pair.response}}}", pair.reference) for pair in honest]

    clean = verdicts()
    for bomb in BOMBS[::7]:
        correct(rf"\boxed{{{bomb}}}", bomb)
        assert verdicts()[:12] == clean[:12]
    assert verdicts() == clean == [{"correct": float(pair.same)} for pair in honest]


HOSTILE = {
    "opened boxes": r"\boxed{",
    "opened braces": "{",
    "closed braces": "}",
    "boxes": r"\boxed{1}",
    "backslashes": "\\",
    "marks": "####",
    "spaces": " ",
    "answers": "answer is ",
    "digits": "9",
    "groups": "1,111,",
    "thoughts": "<think>",
    "ends of thoughts": "</think>",
    "fractions": r"\frac{",
    "nothing": "\x00",
    "surrogates": "\ud800",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_search_for_an_answer_takes_time_linear_in_the_text(name: str) -> None:
    def seconds(length: int) -> float:
        text = (HOSTILE[name] * length)[:length]
        took = []
        for _ in range(3):
            start = time.thread_time()
            final_answers(text, anywhere=True)
            correct(text, "5", anywhere=True)
            took.append(time.thread_time() - start)
        return min(took)

    few, many = seconds(30_000), seconds(1_000_000)
    assert many < 2
    # Times below a millisecond say nothing about growth.
    slope = math.log(max(many, 1e-3) / max(few, 1e-3)) / math.log(1_000_000 / 30_000)
    assert slope <= 1.2


def test_boxes_within_boxes_are_cut_before_they_are_copied() -> None:
    text = r"\boxed{" * 10_000 + "72" + "}" * 10_000
    assert len(boxed(text)) == 10_000
    start = time.thread_time()
    assert correct(text, "72") == {"correct": 0.0}
    assert time.thread_time() - start < 0.5


@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(3000, 1, marks=pytest.mark.slow)])
def test_generated_pairs_are_told_apart_in_both_directions(count: int, seed: int) -> None:
    made = pairs(count, seed=seed)
    wrong = [
        pair
        for pair in made
        for one, other in ((pair.response, pair.reference), (pair.reference, pair.response))
        if correct(rf"\boxed{{{one}}}", other) != {"correct": float(pair.same)}
    ]
    assert wrong == []
