"""The Jinja file against SOLAR's published text, and against the string functions that training uses."""

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solar_plugins.data.template import Example, examples, render, renders_as_solar, template_text


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


SINGLE = chat(("user", "Hello?"))
ANSWERED = chat(("user", "Hello?"), ("assistant", "Hi."))
SYSTEM = chat(("system", "Be kind."), ("user", "Hello?"))
EMPTY_SYSTEM = chat(("system", ""), ("user", "Hello?"))
MULTI = chat(
    ("system", "Be kind."), ("user", "Hello?"), ("assistant", "Hi."), ("user", "Bye?"), ("assistant", "See you.")
)
# What the template of upstage/SOLAR-10.7B-Instruct-v1.0 renders, as its tokenizer_config.json and model card print it.
PUBLISHED = [
    (SINGLE, False, "### User:\nHello?\n\n"),
    (SINGLE, True, "### User:\nHello?\n\n### Assistant:\n"),
    (ANSWERED, False, "### User:\nHello?\n\n### Assistant:\nHi."),
    (SYSTEM, True, "### System:\nBe kind.\n\n### User:\nHello?\n\n### Assistant:\n"),
    (EMPTY_SYSTEM, True, "### User:\nHello?\n\n### Assistant:\n"),
    (
        MULTI[:4],
        True,
        "### System:\nBe kind.\n\n### User:\nHello?\n\n### Assistant:\nHi.### User:\nBye?\n\n### Assistant:\n",
    ),
    (
        MULTI,
        False,
        "### System:\nBe kind.\n\n### User:\nHello?\n\n### Assistant:\nHi.### User:\nBye?\n\n### Assistant:\nSee you.",
    ),
]


@pytest.mark.parametrize(("messages", "asks", "text"), PUBLISHED)
def test_the_published_text_to_the_character(messages, asks, text, tokenizer):
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template_text(), tokenize=False, add_generation_prompt=asks
    )
    assert rendered == text
    assert render(messages, add_generation_prompt=asks) == text
    plain = jinja2.Environment().from_string(template_text())
    assert plain.render(messages=messages, add_generation_prompt=asks) == text, "in a Jinja that trims no blocks"


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=9)), max_size=5),
    st.booleans(),
)
def test_the_string_functions_are_the_template(turns, asks):
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template_text())
    messages = chat(*turns)
    assert template.render(messages=messages, add_generation_prompt=asks) == render(messages, asks)


def test_end_answers_adds_eos_to_the_last_answer_only(tokenizer):
    def ended(messages):
        return tokenizer.apply_chat_template(
            messages, chat_template=template_text(), tokenize=False, end_answers=True
        ).removeprefix(render(messages))

    assert ended(ANSWERED) == "</s>"
    assert ended(MULTI) == "</s>"
    assert ended(SINGLE) == ""


def test_each_answer_is_an_example_with_the_prompt_of_inference(tokenizer):
    found = list(examples(MULTI))
    assert found == [
        Example("### System:\nBe kind.\n\n### User:\nHello?\n\n### Assistant:\n", "Hi."),
        Example(
            "### System:\nBe kind.\n\n### User:\nHello?\n\n### Assistant:\nHi.### User:\nBye?\n\n### Assistant:\n",
            "See you.",
        ),
    ]
    for example, so_far in zip(found, (MULTI[:2], MULTI[:4]), strict=True):
        assert example.prompt == tokenizer.apply_chat_template(
            so_far, chat_template=template_text(), tokenize=False, add_generation_prompt=True
        )


def test_an_equivalent_template_is_recognized_by_its_output(tokenizer):
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{% if m['content'] %}"
        "{{ '### System:\n' + m['content'] + '\n\n' }}{% endif %}{% elif m['role'] == 'user' %}"
        "{{ '### User:\n' + m['content'] + '\n\n' }}{% else %}{{ '### Assistant:\n' + m['content'] }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}{% endfor %}"
    )

    def apply(messages):
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert renders_as_solar(apply)
    same = tokenizer.chat_template
    for other in (
        same.replace("### User", "### Human"),
        same.replace("m['content'] + '\n\n'", "m['content'].strip() + '\n\n'"),
        same.replace("'### Assistant:\n' + m['content']", "'### Assistant:\n' + m['content'] | trim"),
        "{{ raise_exception('no') }}",
    ):
        tokenizer.chat_template = other
        assert other != same
        assert not renders_as_solar(apply)
