# ruff: noqa: E501  (tables: one entry a line reads better)
"""The language of the pre-training: facts about a scene, and talk about a described scene.

Facts ("color of star: red;") are stated about described scenes and about images. Talk (questions, claims and choices,
with every answer word that instruction tuning will need) is about *described* scenes only: nano has never answered a
question about an image. No sentence here is worded as in the demo tasks; ``tests/models/test_nano.py`` compares them.
"""

from __future__ import annotations

import random

from m2pt_cli.demo.questions import DIGIT_ATTRIBUTES, READINGS, RELATIONS, THREE_WAY, Reading, wrong_value
from m2pt_cli.demo.render import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, UNSEEN_PROPERTIES
from m2pt_cli.demo.scenes import Scene, Thing, describe, split_of

Text = tuple[str, str]  # the given text and its continuation

SHAPE_ATTRIBUTES = tuple(name for name in READINGS if name not in (*DIGIT_ATTRIBUTES, "ground"))
CAPTION_REQUESTS = ("Describe the image.", "Describe this image.", "Describe the picture.")

FACTS = {
    "color": "color of {shape}:",
    "shape": "shape of {color}:",
    "size": "size of {thing}:",
    "place": "place of {thing}:",
    "content": "content of {place}:",
    "presence": "any {thing}:",
    "relation": "{axis} of {first} against {second}:",
    "count": "number of {plural}:",
    "equality": "color of {first} against {second}:",
    "object": "object:",
    "ground": "backdrop:",
    "digit": "digit:",
    "parity": "parity:",
    "ink": "ink:",
}
CLAIMED_FACTS = {
    "color": "{shape} {value}",
    "shape": "{color} {value}",
    "size": "{thing} {value}",
    "place": "{thing} {value}",
    "content": "{place} {value}",
    "presence": "some {thing}",
    "relation": "{first} {relation} {second}",
    "count": "{value} {plural}",
    "equality": "{first} {second} equal",
    "object": "object {value}",
    "ground": "backdrop {value}",
    "digit": "digit {value}",
    "parity": "parity {value}",
    "ink": "ink {value}",
}
QUESTIONS = {
    "color": ("what color appears on the {shape}", "say which color was given to the {shape}", "tell the color that the {shape} has", "the {shape} is of what color", "in which color do you see the {shape}", "the {shape} must have which color", "by the light, say the color of this {shape}"),
    "shape": ("what shape appears in {color}", "say which shape was given to the {color} object", "tell what kind of shape is {color}", "what does the {color} outline show", "name the {color} object", "the striped or blurred object in {color} is what", "the main thing in {color} is what"),
    "size": ("how large does the {thing} appear", "tell the size that the {thing} has", "say how big this {thing} is", "which size do you see on the {thing}"),
    "place": ("where does the {thing} appear", "say where you find the {thing}", "tell the part of the picture where the {thing} is located", "at which place is the {thing} shown", "say where the {thing} was seen or placed"),
    "content": ("what appears {place}", "what is located at the {place}", "say which object can be found {place}", "tell what you see in the part {place}", "here at the {place} is what"),
    "presence": ("does a {thing} appear", "say if there is any {thing}", "do you find this: {thing}"),
    "relation": ("from the {second}, where does the {first} lie", "tell where the {first} lies, as seen from the {second}", "how does the {first} lie against the {second}", "on what side do you see the {first}, if you look from the {second}"),
    "count": ("how many times does a {shape} appear", "say what number of {plural} you find", "the total of {plural}", "about {plural}: how many"),
    "equality": ("how does the {first} compare with the {second} in color", "say if {first} and {second} are equal or unequal in color"),
    "object": ("what appears", "say what the picture shows", "tell what is drawn", "the main or blurred thing is what", "name it"),
    "ground": ("what color appears behind", "say which color fills the background", "tell the color of the backdrop", "objects aside, what color is there"),
    "digit": ("which digit appears", "say what number was written", "tell which handwritten digit it is", "what does the noise show"),
    "parity": ("what kind of digit appears", "say if an odd or an even digit was written"),
    "ink": ("in what color was the digit written", "say which color the number has", "tell the ink that was used"),
}  # fmt: skip
CLAIMS = {
    "color": ("the {shape} appears {value}", "{value} was given to the {shape}", "you see that the {shape} has {value}", "a {shape} in {value}"),
    "shape": ("the {color} object appears to be a {value}", "what is {color} has the shape of a {value}", "{color} was given to a {value}"),
    "size": ("the {thing} appears {value}", "a {value} {thing}", "how the {thing} looks: {value}"),
    "place": ("the {thing} appears {value}", "the part with the {thing} is {value}", "if you look {value} there is the {thing}"),
    "content": ("a {value} appears {place}", "{place} you find a {value}"),
    "presence": ("a {thing} appears", "there is some {thing}", "you can see a {thing} drawn", "the picture shows some {thing}", "it is visible that a {thing} appears"),
    "relation": ("the {first} appears {relation} the {second}", "{relation} the {second} there is the {first}"),
    "count": ("{value} {plural} appear", "the {plural} are {value} in total", "one sees {value} {plural}"),
    "equality": ("{first} and {second} appear in the same color", "the same color is on the {first} and on the {second}"),
    "object": ("a {value} appears", "it has the shape of a {value}", "the picture shows one {value}"),
    "ground": ("behind appears {value}", "the background is {value}"),
    "digit": ("the digit appears to be {value}", "someone has written a {value}", "a {value} written by hand"),
    "parity": ("an {value} digit appears",),
    "ink": ("the digit appears {value}", "it was written in {value}"),
}  # fmt: skip
SENTENCES = {
    "color": "the {shape} appears {value}.",
    "shape": "the object in {color} appears to be a {value}.",
    "size": "the {thing} appears {value}.",
    "place": "the {thing} appears {value}.",
    "content": "{place} appears a {value}.",
    "count": "{value} {plural} appear.",
    "object": "a {value} appears.",
    "ground": "behind appears {value}.",
    "digit": "the digit appears to be a {value}.",
    "ink": "the digit appears in {value}.",
}
# Ways to ask for an answer in talk, and the answers.
VERDICTS = {
    "yes or no: {}": ("yes", "no"),
    "say yes or say no: {}": ("yes", "no"),
    "do you agree: {}": ("yes", "no"),
    "{}, yes or no?": ("yes", "no"),
    "{}, true or false?": ("true", "false"),
    "a statement, true or false: {}": ("true", "false"),
    "judge true or false: {}": ("true", "false"),
    "correct or not: {}": ("correct", "incorrect"),
    "yes, no or not sure? {}": THREE_WAY,
    "is it yes or no or not sure: {}": THREE_WAY,
    "support or not, or not clear: {}": THREE_WAY,
    "as far as one can know: {}": THREE_WAY,
}
PLAIN = ("{}?", "short answer: {}?", "in one word, {}?", "{}? one word.")
NUMBERED = ("{}? a number.", "with a number, {}?")
CHOOSING = ("{}? options: {choices}.", "from {choices}, choose: {}?", "one of {choices}: {}?")
TELLING = ("{}? a sentence.", "in a short sentence, {}?")
# Words that can be dropped from a sentence, and filler words that can be added.
DROPPED = (
    "the",
    "a",
    "is",
    "that",
    "it",
    "this",
    "you",
    "see",
    "do",
    "appears",
    "appear",
    "some",
    "there",
    "say",
    "tell",
)
FILLERS = (
    *("the", "a", "is", "that", "it", "this", "you", "see", "do", "there", "image", "picture", "here", "in", "what"),
    *("which", "does", "have", "has", "look", "looks", "show", "shows", "can", "find", "seen", "to"),
    *("be", "part", "kind", "placed", "lies", "located", "visible", "object", "drawn", "written", "of", "from", "with"),
    *(
        "clear",
        "statement",
        "agree",
        "support",
        "main",
        "big",
        "total",
        "number",
        "are",
        "and",
        "answer",
        "same",
        "how",
    ),
)


def _render(template: str, reading: Reading, value: str | None = None) -> str:
    axis = "side" if "left" in reading.values else "height"
    value = reading.value if value is None else value
    return template.format(**reading.slots, axis=axis, value=value, relation=RELATIONS.get(value, ""))


def _read(attribute: str, scene: Scene, rng: random.Random) -> Reading | None:
    """Return a random reading of an attribute; where one value is common, rare values are preferred."""
    reading = READINGS[attribute](scene, rng)
    if attribute == "equality":
        wanted = rng.choice(("yes", "yes", "no"))
        for _ in range(5):
            if reading is None or reading.value == wanted:
                break
            reading = READINGS[attribute](scene, rng)
    if attribute == "count":
        for _ in range(2):
            if reading is None or reading.value != "one":
                break
            reading = READINGS[attribute](scene, rng)
    return reading


def _claim(reading: Reading, rng: random.Random, unknown: float) -> tuple[str, int]:
    """Return a proposed value and 0 if it is true, 1 if it is false, 2 if no image can show it."""
    if reading.values == ("yes", "no"):  # presence, equality: the claim itself is the value
        return reading.value, int(reading.value == "no")
    if rng.random() < unknown and reading.slots:
        return rng.choice(UNSEEN_PROPERTIES), 2
    if rng.random() < 0.5:
        return reading.value, 0
    return wrong_value(reading, rng), 1


def choices_of(reading: Reading, rng: random.Random) -> list[str]:
    """Return two to six possible values in random order, including the true one."""
    others = [value for value in reading.values if value != reading.value]
    chosen = [reading.value, *rng.sample(others, min(len(others), rng.randint(1, 5)))]
    rng.shuffle(chosen)
    return chosen


_SPOKEN = {"presence": {"yes": "present", "no": "absent"}, "equality": {"yes": "equal", "no": "unequal"}}


def _spoken(attribute: str, value: str) -> str:
    return _SPOKEN.get(attribute, {}).get(value, value)


def plain_fact(attribute: str, scene: Scene, rng: random.Random) -> Text | None:
    """Return a fact that names a value."""
    reading = _read(attribute, scene, rng)
    return None if reading is None else (_render(FACTS[attribute], reading), _spoken(attribute, reading.value))


def fact(attribute: str, scene: Scene, rng: random.Random) -> Text | None:
    """Return a fact: a value, a judged claim, or a choice between values."""
    reading = _read(attribute, scene, rng)
    if reading is None:
        return None
    kind = rng.random()
    if kind < 0.3:
        value, truth = _claim(reading, rng, 0.12 if attribute in ("color", "size", "place") else 0.0)
        claim = _render(CLAIMED_FACTS[attribute], reading, value)
        return f"claim {claim}:", ("correct", "incorrect", "unknown")[truth]
    stem = _render(FACTS[attribute], reading)
    if kind < 0.4 and reading.values != ("yes", "no"):
        stem = f"{stem[:-1]}, pick {', '.join(choices_of(reading, rng))}:"
    return stem, _spoken(attribute, reading.value)


def talk(attribute: str, scene: Scene, rng: random.Random) -> Text | None:
    """Return a question or a claim about a described scene, with an answer of any form."""
    reading = _read(attribute, scene, rng)
    if reading is None:
        return None
    boolean = reading.values == ("yes", "no")
    kind = rng.random()
    if kind < 0.5:
        cue = rng.choice(list(VERDICTS))
        value, truth = _claim(reading, rng, 0.3 if VERDICTS[cue] is THREE_WAY else 0.0)
        claim = _render(rng.choice(CLAIMS[attribute]), reading, value)
        return cue.format(claim), VERDICTS[cue][truth]
    question = _render(rng.choice(QUESTIONS[attribute]), reading)
    value = _spoken(attribute, reading.value)
    if kind < 0.72 or attribute == "relation":  # without choices a relation has two true answers
        if boolean:
            choices = [_spoken(attribute, v) for v in reading.values]
            rng.shuffle(choices)
        else:
            choices = choices_of(reading, rng)
        return rng.choice(CHOOSING).format(question, choices=", ".join(choices)), value
    if kind < 0.85 and attribute in SENTENCES:
        return rng.choice(TELLING).format(question), _render(SENTENCES[attribute], reading)
    if attribute in ("count", "digit") and rng.random() < 0.5:
        return rng.choice(NUMBERED).format(question), value
    return rng.choice(PLAIN).format(question), value


def loose_talk(attribute: str, scene: Scene, rng: random.Random) -> Text | None:
    """Return talk with filler words added or removed, so that the model learns to ignore them."""
    text = talk(attribute, scene, rng)
    if text is None or rng.random() < 0.3:
        return text
    words = [word for word in text[0].split() if word not in DROPPED or rng.random() > 0.2]
    for _ in range(rng.randint(0, 3)):
        # Insert next to another filler word, never between the words for one object.
        places = [place for place, word in enumerate(words) if word in DROPPED or word in FILLERS]
        words.insert(rng.choice(places) if places else 0, rng.choice(FILLERS))
    return " ".join(words), text[1]


def distinct_scene(rng: random.Random) -> Scene:
    """Draw a training scene of two to six objects; no two share a colour or a shape, so each word is a unique key."""
    while True:
        number = rng.randint(2, 6)
        places = sorted(rng.sample(range(9), number))
        columns = zip(rng.sample(SHAPES, number), rng.sample(list(COLORS), number), places, strict=True)
        things = tuple(Thing(shape, color, rng.choice(SIZES), PLACES[place]) for shape, color, place in columns)
        scene = Scene(rng.choice(list(BACKGROUNDS)), things)
        if split_of(scene) == "train":
            return scene


def scene_text(scene: Scene, rng: random.Random, fields: tuple[str, ...] | None = None) -> str:
    """Describe a scene: its caption, the caption in another order, or (with ``fields``) a list of some fields."""
    if scene.digit is not None or (fields is None and rng.random() < 0.4):
        return describe(scene)
    things = list(scene.things)
    rng.shuffle(things)

    def part(thing: Thing) -> str:
        return " ".join(getattr(thing, field) for field in fields or ("size", "color", "shape", "place"))

    listed = ", ".join(part(thing) for thing in things)
    return f"{listed}." if fields else f"{scene.background} scene: {listed}."
