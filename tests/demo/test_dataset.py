"""Answers of the demo tasks are parsed strictly in the requested form."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from m2pt_cli.data.sample import Sample
from m2pt_cli.demo.dataset import (
    CAPTION_SHARE,
    DemoQuestion,
    demo_answer_is_right,
    demo_captions,
    demo_eval_questions,
    demo_train_samples,
    majority_guess,
    parse_demo_answer,
)
from m2pt_cli.demo.questions import FAMILIES, FORMATS, READINGS, SEEN, UNSEEN, scene_statistics
from m2pt_cli.demo.scenes import Scene, SceneImage, split_of


@pytest.mark.parametrize(
    ("family", "text", "value"),
    [
        ("color-word", "Red.", "red"),
        ("color-word", "the red circle", None),
        ("color-word", "", None),
        ("color-word", "gray", None),  # a background, not a colour of things
        ("object-word", "a star", "star"),
        ("color-yesno", " YES ", "yes"),
        ("color-yesno", "true", None),
        ("shape-truefalse", "False", "false"),
        ("snli-ve", "Not sure.", "not sure"),
        ("count-number", "2", "two"),
        ("count-number", "two", "two"),
        ("count-number", "22", None),
        ("mnist", "7.", "seven"),
        ("shape-sentence", "the red object is a star.", "star"),
        ("shape-sentence", "star", None),
        ("shape-sentence", "black scene: large red star north.", None),
        ("shape-sentence", "the red object is a star or a circle.", None),
        ("digit-sentence", "This is the digit 5.", "five"),
        ("relation-choice", "left", "left"),
        ("relation-choice", "left of", None),
        ("place-word", "northwest", "northwest"),
    ],
)
def test_reading(family: str, text: str, value: str | None) -> None:
    assert parse_demo_answer(family, text) == value


def test_an_answer_is_right_where_it_names_the_same_value() -> None:
    assert demo_answer_is_right("digit-sentence", "this is the digit five.", "That is a digit: it is 5")
    assert not demo_answer_is_right("digit-sentence", "this is the digit five.", "five")
    assert not demo_answer_is_right("color-yesno", "yes", "no") and not demo_answer_is_right("color-yesno", "yes", "?")


def test_majority_is_the_commonest_answer_or_guessing_among_the_choices() -> None:
    image = SceneImage(Scene("black", digit=1, digit_color="red"), 0)

    def asked(family: str, answers: list[str], choices: tuple[str, ...] = ()) -> list[DemoQuestion]:
        return [DemoQuestion(f"{family}-{n}", family, image, "?", answer, choices) for n, answer in enumerate(answers)]

    scores = majority_guess(
        asked("color-yesno", ["yes", "yes", "no", "yes"])
        + asked("digit-sentence", ["this is the digit one.", "this is the digit two."])
        + asked("cifar", ["star", "cross", "circle", "square"], ("star", "cross"))
    )
    assert scores == {"color-yesno": 0.75, "digit-sentence": 0.5, "cifar": 0.5}


DOCUMENT = Path(__file__).parents[2] / "docs" / "demo-tasks.md"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return demo_train_samples(3000, seed=0)


@pytest.fixture(scope="module")
def questions() -> list[DemoQuestion]:
    return demo_eval_questions()


def _scene(image: object) -> Scene:
    assert isinstance(image, SceneImage)
    return image.scene


def test_samples_are_conversations_about_one_image(samples: list[Sample]) -> None:
    assert len(samples) == 3000 == len({sample.id for sample in samples})
    for sample in samples:
        user, assistant = sample.turns
        assert user.role == "user" and user.text.startswith("<image>\n") and user.text.count("<image>") == 1
        assert assistant.role == "assistant" and assistant.text
        assert len(sample.images) == 1


def test_the_seed_decides_everything() -> None:
    def contents(samples: list[Sample]) -> list[tuple[object, ...]]:
        return [(sample.images, sample.turns, sample.task) for sample in samples]

    assert contents(demo_train_samples(200, 1)) == contents(demo_train_samples(200, 1))
    assert contents(demo_train_samples(200, 1)) != contents(demo_train_samples(200, 2))


def test_training_shows_the_seen_families_evenly_and_captions(samples: list[Sample]) -> None:
    counts = Counter(sample.task for sample in samples)
    assert counts.pop("caption") == round(3000 * CAPTION_SHARE)
    assert set(counts) == {family.name for family in SEEN}
    assert max(counts.values()) - min(counts.values()) <= 1
    shared = Counter(sample.images[0] for sample in samples)
    assert max(shared.values()) > 1


def test_training_and_evaluation_share_no_scene_and_no_digit(
    samples: list[Sample], questions: list[DemoQuestion]
) -> None:
    train = {_scene(sample.images[0]) for sample in samples}
    test = {_scene(question.image) for question in questions}
    assert {split_of(scene) for scene in train} == {"train"}
    assert {split_of(scene) for scene in test} == {"test"}
    assert not {scene.digit for scene in train} & {scene.digit for scene in test} - {None}


def test_evaluation_has_two_thousand_of_each_kind(questions: list[DemoQuestion]) -> None:
    assert Counter(question.seen for question in questions) == {True: 2000, False: 2000}
    assert {question.family for question in questions} == set(FAMILIES)
    assert len(SEEN) >= 16 and len(UNSEEN) >= 8


def test_guessing_is_kept_low(questions: list[DemoQuestion]) -> None:
    guesses = majority_guess(questions)
    assert max(guesses.values()) <= 0.55
    for seen in (True, False):
        mean = [guesses[question.family] for question in questions if question.seen is seen]
        assert sum(mean) / len(mean) <= 0.40


def test_every_answer_reads_as_itself_and_every_choice_list_holds_it(questions: list[DemoQuestion]) -> None:
    for question in questions:
        assert demo_answer_is_right(question.family, question.answer, question.answer), question
        if FAMILIES[question.family].format == "choice":
            assert question.answer in question.choices and len(set(question.choices)) == len(question.choices)
            assert f"Choose one: {', '.join(question.choices)}." in question.question


def _truth(question: DemoQuestion) -> str | None:
    """The answer worked out again from the scene and the words, for families whose words say all."""
    scene, text = _scene(question.image), question.question
    if match := re.search(r"(?:Is there a|Is any) (\w+ \w+) (?:in|drawn)", text):
        return "yes" if match[1] in {thing.name for thing in scene.things} else "no"
    if match := re.search(r"total of (\w+) (\w+)s? in", text):
        shape = match[2].removesuffix("s").replace("crosse", "cross")
        number = sum(thing.shape == shape for thing in scene.things)
        return "yes" if ["zero", "one", "two", "three", "four"][number] == match[1] else "no"
    if match := re.search(r"the (\w+ \w+) lies (left of|right of|above|below) the (\w+ \w+)\?", text):
        first, second = (next(t for t in scene.things if t.name == match[n]) for n in (1, 3))
        is_so = {
            "left of": first.column < second.column,
            "right of": first.column > second.column,
            "above": first.row < second.row,
            "below": first.row > second.row,
        }
        return "yes" if is_so[match[2]] else "no"
    if match := re.search(r"statement: the (\w+) is (\w+)\?", text):
        color = next(thing.color for thing in scene.things if thing.shape == match[1])
        from m2pt_cli.demo.render import COLORS

        return "not sure" if match[2] not in COLORS else "yes" if match[2] == color else "no"
    return None


def test_answers_are_true(questions: list[DemoQuestion]) -> None:
    checked: Counter[str] = Counter()
    for question in questions:
        if (truth := _truth(question)) is not None:
            assert parse_demo_answer(question.family, question.answer) == truth, question
            checked[question.family] += 1
    assert set(checked) >= {"pope", "mme-count", "vsr", "snli-ve", "outlined-presence"}
    assert min(checked.values()) > 100


def test_mme_pairs_are_one_yes_and_one_no_about_one_image(questions: list[DemoQuestion]) -> None:
    pairs = defaultdict(list)
    for question in questions:
        if FAMILIES[question.family].paired:
            pairs[question.question_id].append(question)
    assert len(pairs) > 100
    for pair in pairs.values():
        assert {question.answer for question in pair} == {"yes", "no"} and len({q.image for q in pair}) == 1


def _stem(wording: str) -> str:
    return re.sub(r"\{\w+\}", "_", wording).lower()


def test_no_unseen_family_shares_wording_or_format_with_attribute() -> None:
    stems = {_stem(wording) for family in SEEN for wording in family.wordings}
    pairs = {(family.attribute, family.format) for family in SEEN}
    for family in UNSEEN:
        assert not stems & {_stem(wording) for wording in family.wordings}, family.name
        assert (family.attribute, family.format) not in pairs, family.name


def test_every_unseen_family_is_a_combination_of_seen_parts() -> None:
    for family in UNSEEN:
        assert family.attribute in {other.attribute for other in SEEN}, family.name
        assert family.format in {other.format for other in SEEN}, family.name


def test_formats_are_named_in_words_in_every_question(questions: list[DemoQuestion]) -> None:
    for question in questions:
        request = FORMATS[FAMILIES[question.family].format].split("{")[0]
        assert request in question.question


def test_styles_are_among_seen_and_unseen_families() -> None:
    for families in (SEEN, UNSEEN):
        assert len({family.style for family in families}) >= 3


def test_popular_things_are_commoner_than_others() -> None:
    single, together = scene_statistics()
    counts = sorted(single.values())
    assert counts[-1] > 1.8 * counts[0]
    assert together["red circle", "red circle"] == single["red circle"]


def test_captions_are_of_the_test_split() -> None:
    captions = demo_captions(50)
    assert {split_of(image.scene) for image, _ in captions} == {"test"}
    assert any("digit" in caption for _, caption in captions)


def test_the_document_lists_every_family() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = {line.split("|")[1].strip().strip("`"): line for line in lines if line.startswith("| `")}
    assert set(rows) == set(FAMILIES)
    for name, family in FAMILIES.items():
        cells = [cell.strip() for cell in rows[name].split("|")]
        assert cells[2:6] == [family.attribute, family.operation, family.format, "seen" if family.seen else "unseen"]


def test_every_attribute_has_a_reading() -> None:
    assert {family.attribute for family in FAMILIES.values()} <= set(READINGS)
