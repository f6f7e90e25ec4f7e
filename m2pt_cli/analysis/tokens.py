"""Assigns a group and a label to every token of a sequence; attention is summed over groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEXTUAL, VISUAL = "textual_prompts", "visual_prompts"
FIRST, CLASS, SYSTEM, IMAGE, QUESTION, ANSWER = "first_token", "class_token", "system", "image", "question", "answer"


@dataclass(frozen=True)
class Tokens:
    """The tokens that can be attended to, in order, with prompts first.

    Attributes:
        groups: the group of every token.
        labels: the label of every token in figures.
    """

    groups: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def names(self) -> list[str]:
        """The groups that have tokens, in the order of the sequence."""
        return list(dict.fromkeys(self.groups))

    def places(self, *names: str) -> NDArray[np.intp]:
        """Return the indices of the tokens of these groups."""
        return np.flatnonzero(np.isin(self.groups, names))

    def sums(self, weights: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Sum attention ``(..., tokens)`` over each group: ``(...)`` per group."""
        return {name: weights[..., self.places(name)].sum(-1) for name in self.names}


def language_tokens(
    prompt: Sequence[int],
    answer: Sequence[int],
    word: Callable[[int], str],
    *,
    num_prompts: int,
    image_token_id: int,
    grid: int,
    is_tiled: bool = False,
    overview: str = "first",
) -> Tokens:
    """Return the tokens of the language model: textual prompts, the question's prompt with its image, the answer.

    ``system`` is all text before the image except the first token, which is an attention sink and has its own group.
    ``question`` is all text after the image.

    Args:
        prompt: token ids, with expanded image tokens.
        answer: token ids of the answer; its last token is left out, because no query attends to it.
        word: returns the text of a token id.
        num_prompts: k_t.
        image_token_id: the id of image tokens.
        grid: image tokens along a side of the vision tower's image.
        is_tiled: the image is split into tiles (LLaVA-NeXT), and has more tokens than one grid of patches.
        overview: whether the tokens of the whole image come ``first`` or ``last`` among those of its tiles.
    """
    groups = [TEXTUAL] * num_prompts
    labels = [f"t{number}" for number in range(num_prompts)]
    image = [place for place, token in enumerate(prompt) if token == image_token_id]
    # With visual_tokens="official", the visual prompts except the first, then the class token, precede the patches.
    numbers = {place: number for number, place in enumerate(image)}
    front = 0 if is_tiled else len(image) - grid * grid
    tiles = len(image) - grid * grid if is_tiled and overview == "last" else 0
    for place, token in enumerate(prompt):
        if token == image_token_id:
            number = numbers[place]
            if number < front:
                groups.append(CLASS if number == front - 1 else VISUAL)
                labels.append("CLS" if number == front - 1 else f"v{number + 1}")
            else:
                groups.append(IMAGE)
                own = number - tiles if number >= tiles else number + grid * grid  # the overview counts from 0
                labels.append(patch_label(own - front, grid))
            continue
        if image and image[0] < place < image[-1]:  # a mark between tiles
            groups.append(IMAGE)
            labels.append(f"tile {word(token)}")
            continue
        groups.append(FIRST if place == 0 else SYSTEM if image and place < image[0] else QUESTION)
        labels.append(word(token))
    groups += [ANSWER] * (len(answer) - 1)
    labels += [word(token) for token in answer[:-1]]
    return Tokens(tuple(groups), tuple(labels))


def vision_tokens(*, num_prompts: int, has_class_token: bool, grid: int) -> Tokens:
    """Return the tokens of the vision tower: visual prompts, class token, patches."""
    groups = [VISUAL] * num_prompts + [CLASS] * has_class_token + [IMAGE] * grid**2
    labels = [f"v{number}" for number in range(num_prompts)] + ["CLS"] * has_class_token
    labels += [patch_label(number, grid) for number in range(grid**2)]
    return Tokens(tuple(groups), tuple(labels))


def patch_label(number: int, grid: int) -> str:
    """Return ``row,column`` of a patch, or the number of a token of the tiles, which follow the overview's patches."""
    return f"{number // grid},{number % grid}" if number < grid * grid else f"tile {number - grid * grid}"


def uniform_causal(num_prompts: int, num_tokens: int) -> NDArray[np.float32]:
    """Return the attention on each key ``(prompts + tokens,)`` if every query attended equally to all it may see.

    The mean over ``num_tokens`` causal queries: query i, counted from 0, sees the prompts and i + 1 tokens.
    """
    each = 1 / (num_prompts + 1 + np.arange(num_tokens))
    received = np.cumsum(each[::-1])[::-1] / num_tokens  # token j is seen by queries j and later
    return np.concatenate([np.full(num_prompts, each.mean()), received]).astype(np.float32)
