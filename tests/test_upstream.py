"""`upstream.py`: everything is found in the installed versions, and missing names are noticed."""

from __future__ import annotations

import pytest
import upstream


def test_nothing_moved() -> None:
    assert upstream.moved() == []


@pytest.mark.parametrize(
    ("check", "line"),
    [
        (upstream.takes("transformers:Trainer.log", "logs", "renamed"), "no parameter renamed"),
        (upstream.has("transformers:Cache", "get_seq_length", "gone"), "no attribute gone"),
        (upstream.says("peft:PeftModel.forward", "another hook"), "does not hold another hook"),
        (upstream.part("model.vision_tower", "no_such_layer"), "no attribute no_such_layer"),
        (lambda: False, "it is not there"),
        (upstream.takes("transformers:NoSuchClass.method"), "AttributeError"),
    ],
)
def test_what_moved_is_named(check: upstream.Check, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "checks", lambda: iter([("method/attention.py", "a name", check)]))
    (found,) = upstream.moved()
    assert found.startswith("method/attention.py: a name: ") and line in found


def test_the_script_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(upstream, "checks", lambda: iter([("a.py", "a name", lambda: True)]))
    assert upstream.main() == 0
    assert capsys.readouterr().out.startswith("all 1 are where they were (transformers ")
    monkeypatch.setattr(upstream, "checks", lambda: iter([("a.py", "a name", lambda: False)]))
    assert upstream.main() == 1
    assert "a.py: a name: it is not there" in capsys.readouterr().out
