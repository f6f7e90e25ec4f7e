"""The words of the drawn world, and what they look like."""

from __future__ import annotations

# RGB, 0 to 255
COLORS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "orange": (250, 140, 30),
    "white": (245, 245, 245),
    "cyan": (60, 220, 225),
}
BACKGROUNDS = {"black": (12, 12, 12), "gray": (105, 105, 105), "brown": (95, 60, 35)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
SIZES = ("large", "small")
# The 3 x 3 grid, row by row: one word per place.
PLACES = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Properties that no picture shows: a claim about them can be neither supported nor refuted.
UNSEEN_PROPERTIES = ("heavy", "old", "soft", "expensive", "warm", "new", "hollow", "fragile")
