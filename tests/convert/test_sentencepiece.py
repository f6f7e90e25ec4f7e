"""Reading tokenizer.model without the sentencepiece library gives the same ids as that library.

``sentencepiece/`` holds a BPE model of 600 pieces with byte fallback, trained by sentencepiece 0.2.3 on this project's
README, and the ids it produced for some texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import official_layout as layout

from m2pt_cli.convert.sentencepiece import SentencePieceModel, image_tokenizer, read_model

FOLDER = Path(__file__).parent / "sentencepiece"
ROWS = [json.loads(line) for line in (FOLDER / "ids.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return image_tokenizer(read_model(FOLDER / "tokenizer.model"))


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_ids_are_those_of_sentencepiece(tokenizer: Any, row: dict[str, Any]) -> None:
    assert tokenizer(row["text"]).input_ids == [1, *row["ids"]]
    assert tokenizer.decode(row["ids"]) == row["text"].replace("▁", " ")


def test_special_tokens_part_the_text(tokenizer: Any) -> None:
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    image = tokenizer.convert_tokens_to_ids("<image>")
    assert image == 3 and len(tokenizer) == 600
    # As the authors' code does, which tokenises what stands between images and ends as texts of their own.
    assert ids("a <image>\nb</s>c") == [*ids("a "), image, *ids("\nb"), 2, *ids("c")]
    assert ids("a\x00") == [*ids("a"), tokenizer.unk_token_id]
    assert tokenizer.decode([1, *ids("a"), image, 2], skip_special_tokens=True) == "a"


def test_it_survives_saving(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for row in ROWS:
        assert again(row["text"]).input_ids == [1, *row["ids"]]
    assert (again.pad_token, again.bos_token_id, again.eos_token_id) == ("<unk>", 1, 2)


def test_offsets_point_into_the_text(tokenizer: Any) -> None:
    """Supervised spans are found through them."""
    text = "USER: <image>\nIs there a chair? ASSISTANT: yes</s>"
    found = tokenizer(text, return_offsets_mapping=True)
    start = text.index(" yes")
    pairs = zip(found.input_ids, found.offset_mapping, strict=True)
    supervised = [token for token, (begin, end) in pairs if begin >= start and end > begin]
    assert tokenizer.decode(supervised) == "yes</s>"


def test_damaged_files(tmp_path: Path) -> None:
    whole = (FOLDER / "tokenizer.model").read_bytes()
    file = tmp_path / "tokenizer.model"
    for content in (b"", b"\x00" * 50, b"{}", whole[:-1], whole[:1000], b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x7f"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"it is not"):
            read_model(file)
    file.write_bytes(whole + whole)  # every piece twice
    with pytest.raises(ValueError, match="damaged"):
        read_model(file)


def test_other_kinds_of_tokenizers(tmp_path: Path) -> None:
    layout.write_tokenizer(tmp_path / "unigram.model", model_type=1)
    with pytest.raises(ValueError, match="BPE"):
        read_model(tmp_path / "unigram.model")
    model = read_model(FOLDER / "tokenizer.model")
    no_null = SentencePieceModel(tuple(piece for piece in model.pieces if piece.text != "<0x00>"), True)
    with pytest.raises(ValueError, match="<0x00>"):
        image_tokenizer(no_null)
    no_end = SentencePieceModel(tuple(piece for piece in model.pieces if piece.text != "</s>"), True)
    with pytest.raises(ValueError, match="lacks </s>"):
        image_tokenizer(no_end)
