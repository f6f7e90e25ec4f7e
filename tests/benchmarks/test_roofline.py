"""The roofline prediction counts the operations of a step, with the extra ones of each variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flops import step_flops
from geometries import GEOMETRIES, TEXT_TOKENS
from roofline import Card, Roofline, main, needs
from train_step import SUPERVISED, TEXTUAL, VISUAL, needed

from m2pt_cli.training import norms

ROWS = 2
_SMALL = GEOMETRIES["small"]
GEOMETRY = replace(
    _SMALL,
    vision=replace(_SMALL.vision, num_layers=3),
    text=replace(_SMALL.text, vocab_size=2000, num_layers=4),
)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Roofline]:
    monkeypatch.setattr(norms, "FUSED_DEVICES", ("cpu",))
    names = ("m2pt", "m2pt, plain norms", "lora, usual recipe", "lora, our loss", "lora, m2pt train", "forward alone")
    return {name: needs(name, GEOMETRY, ROWS, Card(4e12, 700e12)) for name in names}


def test_rows(found: dict[str, Roofline]) -> None:
    geometry = GEOMETRY
    flops = step_flops(
        geometry, rows=ROWS, text_tokens=TEXT_TOKENS, supervised=SUPERVISED, visual_prompts=VISUAL,
        textual_prompts=TEXTUAL,
    )  # fmt: skip
    # Beyond need: the vision layer whose output nobody reads, and prompts as queries.
    for name, most in (("forward alone", 1.15), ("m2pt", 1.25)):
        assert 0.99 < found[name].operations.total() / needed(name, flops) < most
    head = 2 * ROWS * geometry.text.hidden_size * geometry.text.vocab_size
    length = geometry.vision.num_patches + TEXT_TOKENS
    spared = found["lora, usual recipe"].operations.total() - found["lora, our loss"].operations.total()
    assert spared == pytest.approx(2 * head * (length - SUPERVISED), rel=1e-6), "the head, forward and back"

    moved = {name: row.bytes.total() for name, row in found.items()}
    assert moved["m2pt"] < 0.8 * moved["m2pt, plain norms"]
    assert moved["m2pt"] < moved["lora, m2pt train"] < moved["lora, our loss"] < moved["lora, usual recipe"]
    layers = geometry.text.num_layers
    # Two a layer and one at the end, forward and back; that of the first layer has only prompts to tell.
    assert found["m2pt"].kernels["rms_norm"] - found["lora, m2pt train"].kernels["rms_norm"] <= 2 * layers + 1
    assert found["lora, m2pt train"].kernels["rms_norm"] == 2 * (2 * layers + 1)
    assert found["m2pt, plain norms"].kernels["rms_norm"] == 0


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "FUSED_DEVICES", norms.FUSED_DEVICES)  # main changes them
    monkeypatch.setattr("sys.argv", ["roofline.py", "--geometry", "small", "--row", "forward alone"])
    main()
    title, *lines = capsys.readouterr().out.splitlines()
    assert "small, 4 rows" in title
    assert [line.split("  ")[0] for line in lines[2:]] == ["m2pt", "forward alone"]
    assert " 1.00 " in lines[2] and "matrices" in lines[3]
