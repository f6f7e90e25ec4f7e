"""Chat templates: LLaVA's exact strings, and the spans that the assistant generates."""

from __future__ import annotations

import pytest
from fixtures.pictures import CHATML_JINJA, LLAVA_JINJA, processor

from m2pt_cli.data.chat import ChatTemplate, get_template, image_first, question_turn
from m2pt_cli.data.sample import Turn
from m2pt_cli.errors import InputError, SettingsError

TURNS = [
    Turn("user", "<image>\nIs there a chair?"),
    Turn("assistant", "Yes."),
    Turn("user", "How many?"),
    Turn("assistant", "12"),
]


def spans(template: ChatTemplate, turns: list[Turn]) -> list[str]:
    rendered = template.render(turns, eos="</s>")
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_vicuna_v1_is_llavas_conversation_to_the_letter() -> None:
    template = get_template("vicuna_v1")
    assert template.render(TURNS, eos="</s>").text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nIs there a chair? ASSISTANT: Yes.</s>"
        "USER: How many? ASSISTANT: 12</s>"
    )
    assert spans(template, TURNS) == [" Yes.</s>", " 12</s>"]


def test_llava_v1_speaks_of_a_human() -> None:
    text = get_template("llava_v1").render(TURNS[:1], eos="</s>").text
    assert text == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: <image>\nIs there a chair? ASSISTANT:"
    )


def test_plain_has_no_system_sentence() -> None:
    template = get_template("plain")
    assert template.render(TURNS[:2], eos="<end>").text == "USER: <image>\nIs there a chair? ASSISTANT: Yes.<end>"
    assert template.render(TURNS[:3], eos="</s>").text.endswith("Yes.</s>USER: How many? ASSISTANT:")


def test_the_bases_own_template_gets_an_end_where_it_writes_none() -> None:
    template = get_template("base", processor(jinja=LLAVA_JINJA))
    rendered = template.render(TURNS, eos="</s>")
    assert rendered.text == "USER: <image>\nIs there a chair? ASSISTANT: Yes.</s> USER: How many? ASSISTANT: 12</s>"
    assert spans(template, TURNS) == [" Yes.</s>", " 12</s>"]
    assert template.render(TURNS[:3], eos="</s>").text == (
        "USER: <image>\nIs there a chair? ASSISTANT: Yes.</s> USER: How many? ASSISTANT:"
    )


def test_the_bases_own_end_is_kept() -> None:
    template = get_template("base", processor(jinja=CHATML_JINJA))
    rendered = template.render(TURNS[:2], eos="</s>")
    assert rendered.text == ("<|im_start|>user\n<image>\nIs there a chair?</s>\n<|im_start|>assistant\nYes.</s>")
    assert spans(template, TURNS) == ["Yes.</s>", "12</s>"]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    counting = "{{ messages | length }}" + LLAVA_JINJA
    with pytest.raises(SettingsError, match="rewrites earlier turns") as caught:
        get_template("base", processor(jinja=counting)).render(TURNS, eos="</s>")
    assert "--template vicuna_v1" in str(caught.value.hint)


def test_unknown_and_missing_templates() -> None:
    with pytest.raises(SettingsError, match=r"'vicuna_v2' is not one of .* Did you mean 'vicuna_v1'\?"):
        get_template("vicuna_v2")
    with pytest.raises(SettingsError, match="no chat template of its own"):
        get_template("base", processor())


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("What?\n<image>", "<image>\nWhat?"),
        ("Look <image> here", "<image>\nLook  here"),
        ("<image>", "<image>"),
        ("no mark", "no mark"),
        ("<image> and <image>?", "<image> and <image>?"),
    ],
)
def test_a_single_image_goes_in_front(text: str, moved: str) -> None:
    assert image_first(text) == moved


def test_marks_of_a_question() -> None:
    assert question_turn("What?", 2).text == "<image>\n<image>\nWhat?"
    assert question_turn("What?", 0).text == "What?"
    assert question_turn("<image> or <image>?", 2).text == "<image> or <image>?"
    with pytest.raises(InputError, match="1 <image> marks for 2 images"):
        question_turn("<image>?", 2)
