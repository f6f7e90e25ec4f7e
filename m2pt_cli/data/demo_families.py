# ruff: noqa: E501  (tables: one entry a line reads better)
"""The task families of the demo data: what each asks, in which words, and in which form it wants the answer.

Families with ``seen=False`` are held out of training. Each of them is a combination that training never shows: its
attribute occurs there with other answer formats, its format with other attributes, its wording not at all. The table in
``docs/demo-tasks.md`` is made from this list.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2pt_cli.data.scene_words import BACKGROUNDS, NUMBERS, SHAPES, SIZES

# How a format is asked for, behind every question. "choice" names the choices.
FORMATS = {
    "word": "Answer with one word.",
    "yes/no": "Answer yes or no.",
    "true/false": "Answer true or false.",
    "choice": "Choose one: {choices}.",
    "number": "Answer with a number.",
    "sentence": "Answer in a short sentence.",
    "three-way": "Answer yes, no or not sure.",
}
THREE_WAY = ("yes", "no", "not sure")
RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True)
class Family:
    """One family of questions.

    Attributes:
        name: unique, as reports print it.
        attribute: a key of ``READINGS``.
        operation: what has to be done with it, for people.
        format: a key of ``FORMATS``.
        wordings: question stems; slots are those of the reading, ``{value}`` the proposed value of a claim,
            ``{relation}`` the same in words.
        seen: trained on by ``--data demo``.
        style: how its images are drawn, one of ``drawing.STYLES``.
        single: images hold one shape only.
        balance: values (or answers) that occur equally often.
        sentence: the form of a sentence answer.
        paired: two questions on one image, one to be answered yes, one no, as in MME.
        imitates: the benchmark it stands for.
    """

    name: str
    attribute: str
    operation: str
    format: str
    wordings: tuple[str, ...]
    seen: bool = True
    style: str = "plain"
    single: bool = False
    balance: tuple[str, ...] = ()
    sentence: str = ""
    paired: bool = False
    imitates: str = ""


_YES_NO = ("yes", "no")
_COUNTS = NUMBERS[:4]
_DIGITS = NUMBERS

SEEN = (
    Family("color-word", "color", "look up", "word", ("What color is the {shape}?", "What is the color of the {shape}?")),
    Family("color-yesno", "color", "verify", "yes/no", ("Is the {shape} {value}?", "Is {value} the color of the {shape}?")),
    Family("color-choice", "color", "look up", "choice", ("Which color does the {shape} have?", "Which is the color of the {shape}?")),
    Family("shape-word", "shape", "look up", "word", ("What shape is the {color} object?", "Which shape does the {color} object have?")),
    Family("shape-truefalse", "shape", "verify", "true/false", ("The {color} object is a {value}.", "The object in {color} is a {value}.")),
    Family(
        "shape-sentence", "shape", "look up", "sentence",
        ("What kind of object is {color}?", "What is the {color} object?"),
        sentence="the {color} object is a {value}.",
    ),
    Family("size-yesno", "size", "verify", "yes/no", ("Is the {thing} {value}?", "Does the {thing} look {value}?")),
    Family("size-choice", "size", "look up", "choice", ("How big is the {thing}?", "Which size does the {thing} have?"), balance=SIZES),
    Family("size-threeway", "size", "verify", "three-way", ("Is it clear that the {thing} is {value}?", "Can you say that the {thing} is {value}?")),
    Family("place-word", "place", "look up", "word", ("Where is the {thing}?", "In which part of the image is the {thing}?")),
    Family("place-truefalse", "place", "verify", "true/false", ("The {thing} is in the {value}.", "You find the {thing} in the {value}.")),
    Family("place-threeway", "place", "verify", "three-way", ("Do you know that the {thing} is {value}?", "Is the {thing} seen to be {value}?")),
    Family("content-word", "content", "look up", "word", ("Which shape is in the {place}?", "What shape do you see in the {place}?")),
    Family("object-word", "object", "recognise", "word", ("What is drawn in this image?", "What object is this?"), single=True, balance=SHAPES),
    Family("object-yesno", "object", "verify", "yes/no", ("Is it a {value}?", "Is this object a {value}?"), single=True, balance=SHAPES),
    Family("presence-truefalse", "presence", "search", "true/false", ("A {thing} is visible.", "The image shows a {thing}."), balance=_YES_NO),
    Family("presence-choice", "presence", "search", "choice", ("Can you find a {thing}?", "What do you say about a {thing}?"), balance=_YES_NO),
    Family("relation-choice", "relation", "compare", "choice", ("On which side of the {second} is the {first}?", "How is the {first} placed from the {second}?"), balance=tuple(RELATIONS)),
    Family("relation-truefalse", "relation", "compare", "true/false", ("The {first} is {relation} the {second}.", "You see the {first} {relation} the {second}."), balance=tuple(RELATIONS)),
    Family("count-number", "count", "count", "number", ("How many {plural} are there?", "How many {plural} do you see?"), balance=_COUNTS),
    Family("count-truefalse", "count", "count and verify", "true/false", ("The number of {plural} is {value}.", "There are {value} {plural}."), balance=_COUNTS),
    Family("equality-yesno", "equality", "compare", "yes/no", ("Do the {first} and the {second} have the same color?", "Is the color of the {first} that of the {second}?"), balance=_YES_NO),
    Family("ground-word", "ground", "look up", "word", ("What is the background color?", "Which color is behind the objects?"), balance=tuple(BACKGROUNDS)),
    Family("digit-yesno", "digit", "verify", "yes/no", ("Is this digit a {value}?", "Does the image show the digit {value}?"), balance=_DIGITS),
    Family("digit-choice", "digit", "recognise", "choice", ("What digit is written here?", "Which digit do you see?"), balance=_DIGITS),
    Family("digit-sentence", "digit", "recognise", "sentence", ("What is written in this image?", "What is this?"), sentence="this is the digit {value}.", balance=_DIGITS),
    Family("parity-choice", "parity", "compute", "choice", ("Is this number odd or even?", "What kind of number is this?"), balance=("odd", "even")),
    Family("ink-word", "ink", "look up", "word", ("What color is the digit?", "What is the color of this digit?")),
    Family("outlined-shape-word", "shape", "look up", "word", ("What shape has the outline in {color}?", "The {color} outline has what shape?"), style="outline"),
    Family("striped-shape-sentence", "shape", "look up", "sentence", ("What kind of striped object is {color}?",), style="striped", sentence="the {color} object is a {value}."),
    Family("tinted-color-word", "color", "look up", "word", ("In this light, what color is the {shape}?",), style="tinted"),
    Family("noisy-digit-choice", "digit", "recognise", "choice", ("What digit is in the noise?",), style="noisy", balance=_DIGITS),
)  # fmt: skip

UNSEEN = (
    Family("pope", "presence", "search", "yes/no", ("Is there a {thing} in the image?",), seen=False, balance=_YES_NO, imitates="POPE"),
    Family("mme-count", "count", "count and verify", "yes/no", ("Is there a total of {value} {plural} in this image?",), seen=False, balance=_COUNTS, paired=True, imitates="MME count"),
    Family("mme-position", "place", "verify", "yes/no", ("Is the {thing} located in the {value} of the image?",), seen=False, paired=True, imitates="MME position"),
    Family("vsr", "relation", "compare", "yes/no", ("Does the image agree with this statement: the {first} lies {relation} the {second}?",), seen=False, balance=tuple(RELATIONS), imitates="VSR"),
    Family("snli-ve", "color", "verify", "three-way", ("Does the image support this statement: the {shape} is {value}?",), seen=False, imitates="SNLI-VE"),
    Family("mnist", "digit", "recognise", "number", ("Which digit is shown in this image?",), seen=False, balance=_DIGITS, imitates="MNIST"),
    Family("cifar", "object", "recognise", "choice", ("What is the main object in this image?",), seen=False, single=True, balance=SHAPES, imitates="CIFAR-10"),
    Family("blurred-cifar", "object", "recognise", "choice", ("What does this blurred picture show?",), seen=False, style="blurred", single=True, balance=SHAPES, imitates="CIFAR-10, blurred"),
    Family("outlined-presence", "presence", "search", "yes/no", ("Is any {thing} drawn here?",), seen=False, style="outline", balance=_YES_NO),
    Family("noisy-digit-truefalse", "digit", "verify", "true/false", ("The handwritten number is {value}.",), seen=False, style="noisy", balance=_DIGITS),
    Family("color-truefalse", "color", "verify", "true/false", ("The {shape} has the color {value}.",), seen=False),
    Family("equality-truefalse", "equality", "compare", "true/false", ("The {first} and the {second} are equal in color.",), seen=False, balance=_YES_NO),
    Family("content-choice", "content", "look up", "choice", ("What can be found at the {place}?",), seen=False),
    Family("ground-choice", "ground", "look up", "choice", ("What color fills the backdrop?",), seen=False, balance=tuple(BACKGROUNDS)),
    Family("ink-choice", "ink", "look up", "choice", ("Which color does the handwritten number have?",), seen=False),
)  # fmt: skip

FAMILIES = {family.name: family for family in (*SEEN, *UNSEEN)}
