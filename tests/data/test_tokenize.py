"""Token ids equal the processor's; spans of answers; truncation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.pictures import CHATML_JINJA, LLAVA_JINJA, picture, picture_file, processor
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from m2pt_cli.data.chat import get_template
from m2pt_cli.data.collate import ImagePreparer
from m2pt_cli.data.sample import Sample, Turn
from m2pt_cli.data.tokenize import Encoded, encode_conversation, encode_prompt, encode_samples
from m2pt_cli.errors import InputError, SettingsError

CONVERSATION = (
    Turn("user", "<image>\nHow many dogs are there?"),
    Turn("assistant", "12 dogs, naïve ones."),
    Turn("user", "Is there\n a chair?"),
    Turn("assistant", "No."),
)


def nine(own: Any) -> Any:
    """The ids of an image of nine patches."""
    return np.full(9, own.image_token_id, np.int32)


def encoded(own: Any, turns: tuple[Turn, ...], name: str = "vicuna_v1", **options: Any) -> Encoded:
    marks = sum(turn.text.count("<image>") for turn in turns)
    return encode_conversation(
        turns, get_template(name, own), own.tokenizer, image_token_id=own.image_token_id,
        image_ids=[nine(own)] * marks, **options,
    )  # fmt: skip


def supervised(own: Any, result: Encoded) -> str:
    return own.tokenizer.decode([token for token in result.labels if token != -100])


@pytest.mark.parametrize("kind", ["llama", "bytes", "words"])
@pytest.mark.parametrize("name", ["vicuna_v1", "llava_v1", "plain", "base"])
def test_ids_are_those_of_the_processor(kind: str, name: str) -> None:
    own = processor(kind, jinja=LLAVA_JINJA)
    for turns, images in ((CONVERSATION, 1), (CONVERSATION[2:], 0), (CONVERSATION[:1], 1)):
        result = encoded(own, turns, name)
        text = get_template(name, own).render(turns, eos="</s>").text
        theirs = own(text=text, images=[picture(60, 40)] * images or None)["input_ids"][0]
        assert result.input_ids == list(theirs)
        assert len(result.labels) == len(result.input_ids) and result.cut == 0


@pytest.mark.parametrize("kind", ["llama", "bytes", "words"])
def test_two_images_stay_where_the_text_puts_them(kind: str) -> None:
    own = processor(kind)
    turns = (Turn("user", "Is <image> like <image>?"), Turn("assistant", "Yes."))
    text = get_template("plain").render(turns, eos="</s>").text
    assert encoded(own, turns, "plain").input_ids == list(own(text=text, images=[picture(9, 9)] * 2)["input_ids"][0])


@pytest.mark.parametrize("kind", ["llama", "bytes"])
@pytest.mark.parametrize("name", ["vicuna_v1", "plain", "base"])
def test_every_answer_is_supervised_with_its_end_and_nothing_else(kind: str, name: str) -> None:
    own = processor(kind, jinja=LLAVA_JINJA)
    result = encoded(own, CONVERSATION, name)
    assert supervised(own, result).replace(" ", "") == "12dogs,naïveones.</s>No.</s>"
    assert all(label in (-100, token) for token, label in zip(result.input_ids, result.labels, strict=True))
    assert own.image_token_id not in result.labels


@pytest.mark.parametrize("kind", ["llama", "bytes"])
@pytest.mark.parametrize("name", ["vicuna_v1", "base"])
def test_an_answer_that_is_not_trained_on_keeps_its_ids_and_has_no_labels(kind: str, name: str) -> None:
    own = processor(kind, jinja=LLAVA_JINJA)
    turns = (CONVERSATION[0], Turn("assistant", CONVERSATION[1].text, supervised=False), *CONVERSATION[2:])
    result = encoded(own, turns, name)
    assert result.input_ids == encoded(own, CONVERSATION, name).input_ids
    assert supervised(own, result).replace(" ", "") == "No.</s>"


def test_a_template_with_its_own_end_is_supervised_to_that_end() -> None:
    own = processor("bytes", jinja=CHATML_JINJA)
    assert supervised(own, encoded(own, CONVERSATION[:2], "base")) == "12 dogs, naïve ones.</s>"


@pytest.mark.parametrize("kind", ["llama", "bytes", "words"])
@pytest.mark.parametrize("name", ["vicuna_v1", "plain", "base"])
def test_the_prompt_at_inference_is_how_training_began(kind: str, name: str) -> None:
    own = processor(kind, jinja=LLAVA_JINJA)
    prompt = encode_prompt(
        "How many dogs are there?", 1, get_template(name, own), own.tokenizer,
        image_token_id=own.image_token_id, image_ids=[nine(own)],
    )  # fmt: skip
    result = encoded(own, CONVERSATION[:2], name)
    assert result.input_ids[: len(prompt)] == prompt
    # The first supervised token is the first that the model has to produce.
    assert next(i for i, label in enumerate(result.labels) if label != -100) == len(prompt)


@pytest.mark.parametrize("question", ["half \ud83d of a pair", "bytes \udcff of a command line"])
def test_what_is_no_character_is_an_input_error(question: str) -> None:
    own = processor("bytes")
    with pytest.raises(InputError, match="holds what is no character"):
        encode_prompt(question, 0, get_template("plain", own), own.tokenizer, image_token_id=own.image_token_id)


def test_a_token_that_begins_before_the_answer_is_supervised_too() -> None:
    words = {word: number for number, word in enumerate(["<unk>", "USER: Why?", "ASSISTANT: Yes", "</s>"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"ASSISTANT: \w+"), "isolated")
    own = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    turns = [Turn("user", "Why?"), Turn("assistant", "Yes")]
    result = encode_conversation(turns, get_template("plain"), own, image_token_id=9)
    assert result.input_ids[-2:] == result.labels[-2:] == [2, 3] and result.labels[0] == -100


def test_a_template_that_writes_bos_itself_has_it_once() -> None:
    own = processor("llama", jinja="{{ '<s>' }}" + LLAVA_JINJA)
    ids = encoded(own, CONVERSATION[:2], "base").input_ids
    assert ids.count(1) == 1 and ids[0] == 1


def test_cut_at_the_end_and_counted() -> None:
    own = processor()
    whole = encoded(own, CONVERSATION, "plain")
    short = encoded(own, CONVERSATION, "plain", max_length=len(whole.input_ids) - 3)
    assert short.cut == 3 and short.input_ids == whole.input_ids[:-3] and short.labels == whole.labels[:-3]


def test_a_cut_that_loses_the_image_or_every_answer_is_a_fault() -> None:
    own = processor()
    result = encoded(own, CONVERSATION[:2], "plain")
    image_end = len(result.input_ids) - result.input_ids[::-1].index(own.image_token_id)
    answer = next(i for i, label in enumerate(result.labels) if label != -100)
    with pytest.raises(InputError, match=f"its image reaches beyond {image_end - 1} tokens"):
        encoded(own, CONVERSATION[:2], "plain", max_length=image_end - 1)
    for too_short in (image_end, answer):
        with pytest.raises(InputError, match=f"its answer begins beyond {too_short} tokens"):
            encoded(own, CONVERSATION[:2], "plain", max_length=too_short)
    assert encoded(own, CONVERSATION[:2], "plain", max_length=answer + 1).labels[-1] != -100


def test_supervised_tokens_are_counted_after_the_cut(tmp_path: Path) -> None:
    own = processor("llama")
    image = picture_file(tmp_path / "a.png")
    turns = (Turn("user", "<image>\nHow many dogs?"), Turn("assistant", "many " * 200), *CONVERSATION[2:])
    samples = [Sample("long", (image,), turns), Sample("short", (image,), CONVERSATION)]
    found = encode_samples(
        samples, get_template("plain"), own.tokenizer, image_token_id=own.image_token_id,
        image_ids=lambda images: [nine(own)] * len(images), max_length=120,
    )  # fmt: skip
    trained = sum(label != -100 for item in found for label in item.encoded.labels)
    assert found.num_cut == 1 and found.lengths[0] == 120
    assert found.num_supervised == trained < 120 + found.lengths[1]


def test_images_that_the_text_does_not_hold() -> None:
    own = processor()
    with pytest.raises(InputError, match="0 image tokens in the text for 1 images"):
        encode_conversation(
            CONVERSATION[2:],
            get_template("plain"),
            own.tokenizer,
            image_token_id=own.image_token_id,
            image_ids=[nine(own)],
        )


def test_samples_are_encoded_checked_and_counted(tmp_path: Path) -> None:
    own = processor()
    images = ImagePreparer(own, fit="crop")
    image = picture_file(tmp_path / "a.png")
    long = "how many dogs " * 40
    samples = [
        Sample("good", (image,), CONVERSATION),
        Sample("text", (), CONVERSATION[2:]),
        Sample("cut", (image,), (*CONVERSATION[:2], Turn("user", long), Turn("assistant", long))),
        Sample("late", (image,), (Turn("user", f"<image>\n{long}"), Turn("assistant", "Yes"))),
        Sample("marks", (), CONVERSATION),
    ]
    options: dict[str, Any] = {
        "image_token_id": own.image_token_id, "image_ids": images.image_ids, "max_length": 100,
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        encode_samples(samples, get_template("plain"), own.tokenizer, **options)
    assert str(caught.value).startswith(
        "2 faulty samples: sample late: its answer begins beyond 100 tokens; sample marks"
    )
    assert "--skip-bad" in str(caught.value.hint)
    kept = encode_samples(samples, get_template("plain"), own.tokenizer, **options, skip_bad=True)
    assert [sample.id for sample in kept.samples] == ["good", "text", "cut"] and kept.faults == 2
    assert kept.num_cut == 1 and kept.lengths[2] == 100
    assert kept.lengths == [len(item.encoded.input_ids) for item in kept]
    assert kept.num_supervised >= sum(label != -100 for item in kept for label in item.encoded.labels)
    assert kept[0].encoded.input_ids == encoded(own, CONVERSATION, "plain").input_ids
    assert [item.sample.id for item in kept[1:]] == ["text", "cut"] and kept[-1].sample.id == "cut"


def test_the_number_of_image_tokens_follows_the_processor() -> None:
    own = processor()
    images = ImagePreparer(own, fit="crop")
    sample = Sample("a", (_Drawn(),), CONVERSATION[:2])
    lengths = []
    for extra in (1, 21):  # the bare base; 20 visual prompts with visual_tokens="official"
        own.num_additional_image_tokens = extra
        kept = encode_samples(
            [sample], get_template("plain"), own.tokenizer, image_token_id=own.image_token_id,
            image_ids=images.image_ids, max_length=500,
        )  # fmt: skip
        lengths.append(kept[0].encoded.input_ids.count(own.image_token_id))
    assert lengths == [9, 29]


def test_tokenizers_that_can_not_serve_are_refused() -> None:
    own = processor()
    own.tokenizer = _Slow()
    with pytest.raises(SettingsError, match="_Slow tells no offsets"):
        encoded(own, CONVERSATION, "plain")
    own.tokenizer.eos_token = None
    with pytest.raises(SettingsError, match="no end-of-sequence token"):
        encoded(own, CONVERSATION, "plain")


class _Slow:
    is_fast = False
    eos_token: str | None = "</s>"


class _Drawn:
    name = "drawn"

    def open(self) -> Any:
        return picture(48, 48)
