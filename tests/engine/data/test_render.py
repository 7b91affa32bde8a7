"""Rendering: the policy is trained on exactly the tokens that it would sample, read exactly as it would read them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.data.arithmetic import ArithmeticData
from engine.data.base import Conversation, DataError, Question, Split
from engine.data.render import load_tokenizer, render_examples, render_prompts
from workers.records import Example, Message

BLANK = Path(__file__).parents[3] / "examples/nano/blank"
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = (  # leaves all answers but the last one out, as templates of reasoning models do with their thoughts
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BLANK)


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(id="row-1", messages=tuple(Message(role=role, content=content) for role, content in turns))


def question(text: str) -> Question:
    return Question(id="row-1", messages=(Message(role="user", content=text),), answer="", row={})


TWO_ANSWERS = conversation(
    ("system", "Add."), ("user", "1+1="), ("assistant", "2"), ("user", "20+22="), ("assistant", "42")
)


def trained_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    learned = example.token_ids[example.prompt_length :]
    return tokenizer.decode([token for token, trained in zip(learned, example.mask, strict=True) if trained])


def text(token_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.decode(list(token_ids))


# ----------------------------------------------------------------------------- prompts


def test_a_prompt_ends_where_the_answer_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = render_prompts([question("12+34=")], tokenizer, context_length=64, max_response_tokens=8)

    assert text(prompt.token_ids, tokenizer) == "<|user|>12+34=<|end|><|assistant|>"
    assert len(prompt.token_ids) == 9  # one a character, and three of the template


def test_a_prompt_keeps_what_its_question_had(tokenizer: PreTrainedTokenizerBase) -> None:
    questions = ArithmeticData(largest=3, held_out=2).questions(Split.TRAIN)
    prompts = render_prompts(questions, tokenizer, context_length=64, max_response_tokens=8)

    assert [(p.id, p.answer, p.row, p.messages) for p in prompts] == [
        (q.id, q.answer, q.row, q.messages) for q in questions
    ]


def test_a_prompt_may_fill_the_room_and_not_a_token_more(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(render_prompts([question("12+34=")], tokenizer, context_length=17, max_response_tokens=8)) == 1
    with pytest.raises(DataError, match=r"row-1: the prompt has 9 tokens; .*\(16\) less .*\(8\) leaves room for 8\."):
        render_prompts([question("12+34=")], tokenizer, context_length=16, max_response_tokens=8)


# ----------------------------------------------------------------------------- conversations


def test_every_answer_and_its_end_token_is_trained_on_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = render_examples([TWO_ANSWERS], tokenizer, context_length=64)
    whole = "<|system|>Add.<|end|><|user|>1+1=<|end|><|assistant|>2<|end|><|user|>20+22=<|end|><|assistant|>42<|end|>"

    assert text(example.token_ids, tokenizer) == whole
    assert trained_text(example, tokenizer) == "2<|end|>42<|end|>"
    assert text(example.token_ids[: example.prompt_length], tokenizer) == whole.split("2<|end|>")[0]
    assert example.mask[0]
    assert len(example.mask) == len(example.token_ids) - example.prompt_length


def test_an_example_begins_as_the_same_question_does(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = render_prompts([question("12+34=")], tokenizer, context_length=64, max_response_tokens=8)
    shown = conversation(("user", "12+34="), ("assistant", "46"))
    (example,) = render_examples([shown], tokenizer, context_length=64)

    assert example.token_ids[: example.prompt_length] == prompt.token_ids
    assert example.mask == (True, True, True)


def test_a_blank_that_the_template_writes_behind_the_end_token_is_not_trained_on(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = CHATML
    (example,) = render_examples([TWO_ANSWERS], tokenizer, context_length=64)

    assert text(example.token_ids, tokenizer).endswith("<|assistant|>42<|end|>\n")
    assert trained_text(example, tokenizer) == "2<|end|>42<|end|>"


def test_a_blank_that_the_answer_itself_ends_in_is_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHATML
    shown = conversation(("user", "a"), ("assistant", "b\n"))
    (example,) = render_examples([shown], tokenizer, context_length=64)
    assert trained_text(example, tokenizer) == "b\n<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = FORGETFUL
    one_answer = conversation(("user", "1+1="), ("assistant", "2"))
    assert trained_text(render_examples([one_answer], tokenizer, context_length=64)[0], tokenizer) == "2<|end|>"

    with pytest.raises(DataError, match=r"row-1: the chat template of .*blank writes earlier turns differently"):
        render_examples([TWO_ANSWERS], tokenizer, context_length=64)


def test_a_conversation_may_fill_the_context_and_not_a_token_more(tokenizer: PreTrainedTokenizerBase) -> None:
    shown = conversation(("user", "1+1="), ("assistant", "2"))
    assert len(render_examples([shown], tokenizer, context_length=9)[0].token_ids) == 9
    with pytest.raises(DataError, match=r"row-1: the conversation has 9 tokens, and model\.context_length is 8"):
        render_examples([shown], tokenizer, context_length=8)


def test_a_conversation_that_teaches_nothing_or_begins_with_the_answer_is_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(DataError, match="row-1: no assistant turn"):
        render_examples([conversation(("user", "a"))], tokenizer, context_length=64)
    with pytest.raises(DataError, match="row-1: it begins with the assistant"):
        render_examples([conversation(("assistant", "a"))], tokenizer, context_length=64)


# ----------------------------------------------------------------------------- the tokenizer


def test_a_model_without_a_chat_template_or_a_tokenizer_is_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert load_tokenizer(str(BLANK)).chat_template == tokenizer.chat_template
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "mute")

    with pytest.raises(DataError, match="mute: the tokenizer has no chat template"):
        load_tokenizer(str(tmp_path / "mute"))
    with pytest.raises(DataError, match=r"row-1: the tokenizer of .*blank has no chat template"):
        render_prompts([question("a")], tokenizer, context_length=64, max_response_tokens=8)
    with pytest.raises(DataError, match="empty: no tokenizer"):
        (tmp_path / "empty").mkdir()
        load_tokenizer(str(tmp_path / "empty"))


def test_a_row_that_the_template_refuses_is_told(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('only users speak') }}"
    with pytest.raises(DataError, match=r"row-1: the chat template of .*blank refuses it: only users speak"):
        render_prompts([question("a")], tokenizer, context_length=64, max_response_tokens=8)
