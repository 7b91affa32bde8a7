"""Sums: what is held out is never trained on, and a near miss is wrong by exactly a little."""

from collections import Counter

import pytest

from engine.data.arithmetic import ArithmeticData, ArithmeticDemos
from engine.data.base import Judged, OfflineData, OnlineData, Preference, Split
from workers.records import Message


def demos(split: Split, **settings: float) -> dict[str, str]:
    """The question as asked -> the answer shown."""
    shown = {}
    for conversation in ArithmeticDemos(**settings).conversations(split):
        asked, answered = conversation.messages
        assert (asked.role, answered.role) == ("user", "assistant")
        shown[asked.content] = answered.content
    return shown


def true_sum(question: str) -> int:
    a, b = question.removesuffix("=").split("+")
    return int(a) + int(b)


def test_the_splits_share_no_pair_and_are_every_pair_together() -> None:
    data = ArithmeticData(largest=12, held_out=40)
    train, held_out = ([q.id for q in data.questions(split)] for split in (Split.TRAIN, Split.HELD_OUT))

    assert len(held_out) == 40
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(f"arithmetic-{a}-{b}" for a in range(13) for b in range(13))


def test_a_question_asks_for_the_sum_that_its_answer_is() -> None:
    questions = ArithmeticData().questions(Split.TRAIN)

    assert len(questions) == 100 * 100 - 400
    for question in questions:
        a, b = question.row["a"], question.row["b"]
        assert question.id == f"arithmetic-{a}-{b}"
        assert [(m.role, m.content) for m in question.messages] == [("user", f"{a}+{b}=")]
        assert int(question.answer) == true_sum(question.messages[0].content)


def test_the_seed_alone_chooses_what_is_held_out() -> None:
    first, again, other = (ArithmeticData(seed=seed).questions(Split.HELD_OUT) for seed in (1, 1, 2))

    assert first == again
    assert {q.id for q in first} != {q.id for q in other}


def test_what_the_base_model_is_shown_is_never_what_the_run_holds_out() -> None:
    held_out = {q.messages[0].content for q in ArithmeticData().questions(Split.HELD_OUT)}

    assert not demos(Split.TRAIN).keys() & held_out
    assert demos(Split.HELD_OUT).keys() == held_out


def test_a_near_miss_is_off_by_one_or_ten_and_never_negative() -> None:
    shown = demos(Split.TRAIN, near_miss_share=1.0)
    offsets = Counter(int(answer) - true_sum(question) for question, answer in shown.items())

    assert set(offsets) == {-10, -1, 1, 10}
    assert min(offsets.values()) > 2100  # of 9600: about a quarter each
    assert all(int(answer) >= 0 for answer in shown.values())


def test_the_share_of_near_misses_is_the_one_asked_for() -> None:
    shown = demos(Split.TRAIN)
    wrong = sum(int(answer) != true_sum(question) for question, answer in shown.items())

    assert abs(wrong / len(shown) - 0.6) < 0.02  # four standard deviations of 9600 draws
    assert all(
        int(answer) == true_sum(question) for question, answer in demos(Split.TRAIN, near_miss_share=0.0).items()
    )


def test_held_out_demonstrations_are_true() -> None:
    shown = demos(Split.HELD_OUT, near_miss_share=1.0)
    assert all(int(answer) == true_sum(question) for question, answer in shown.items())


def test_a_pair_is_answered_the_same_whatever_else_is_in_the_data() -> None:
    small, large = demos(Split.TRAIN, largest=20, held_out=10), demos(Split.TRAIN, largest=99, held_out=10)
    both = small.keys() & large.keys()

    assert len(both) > 400
    assert all(small[question] == large[question] for question in both)


@pytest.mark.parametrize(
    "settings", [{"largest": 0}, {"held_out": -1}, {"held_out": 10_000}, {"largest": 3, "held_out": 16}]
)
def test_settings_that_leave_nothing_to_train_on_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(list(settings)[-1])):
        ArithmeticData(**settings)


def test_sums_can_be_asked_and_shown_and_demos_only_shown() -> None:
    assert isinstance(ArithmeticData(), OnlineData) and isinstance(ArithmeticData(), OfflineData)
    assert isinstance(ArithmeticDemos(), OfflineData) and not isinstance(ArithmeticDemos(), OnlineData)


# ----------------------------------------------------------------------------- preferences and judgements


def is_true(row: Preference | Judged, *answer: Message) -> bool:
    return int(answer[0].content) == true_sum(row.asked.messages[0].content)


@pytest.mark.parametrize("split", list(Split))
def test_the_chosen_answer_is_the_sum_and_the_rejected_one_a_near_miss(split: Split) -> None:
    data = ArithmeticData(largest=30, near_misses=(-10, 3))
    rows = data.preferences(split)
    assert [row.id for row in rows] == [question.id for question in data.questions(split)]
    assert all(is_true(row, *row.chosen) for row in rows)
    off = Counter(int(row.rejected[0].content) - true_sum(row.asked.messages[0].content) for row in rows)
    assert set(off) == {-10, 3} and min(off.values()) > len(rows) / 4
    assert all(int(row.rejected[0].content) >= 0 for row in rows)


@pytest.mark.parametrize("split", list(Split))
def test_what_is_approved_of_is_true_and_half_of_the_rows_are(split: Split) -> None:
    rows = ArithmeticData(largest=30).judged(split)
    assert all(row.desirable == is_true(row, *row.answer) for row in rows)
    assert 0.4 < sum(row.desirable for row in rows) / len(rows) < 0.6


def test_mislabelled_rows_are_the_wrong_way_round_in_training_alone() -> None:
    data = ArithmeticData(mislabelled_share=0.3)
    for split, share in ((Split.TRAIN, 0.3), (Split.HELD_OUT, 0.0)):
        flipped = [not is_true(row, *row.chosen) for row in data.preferences(split)]
        misjudged = [row.desirable != is_true(row, *row.answer) for row in data.judged(split)]
        for wrong in (flipped, misjudged):
            assert sum(wrong) / len(wrong) == pytest.approx(share, abs=0.02)


def test_a_document_is_the_sum_written_out() -> None:
    texts = [document.text for document in ArithmeticData(largest=3, held_out=2).documents(Split.TRAIN)]
    assert len(texts) == 14 and all(eval(text.replace("=", "==")) for text in texts)


@pytest.mark.parametrize(
    ("name", "value"), [("mislabelled_share", 1.5), ("near_misses", (-1,)), ("near_misses", (0, 1))]
)
def test_preferences_that_cannot_be_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        ArithmeticData(**{name: value})
