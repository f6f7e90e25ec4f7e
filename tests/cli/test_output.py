"""Output: what goes to stdout and stderr, and which characters never reach a terminal."""

from __future__ import annotations

import json

import pytest

from m2pt_cli.cli.output import Output


@pytest.fixture(autouse=True)
def fresh() -> None:
    Output.configure()


def test_text_and_json_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output.configure(json=True)
    output.text("plain [/INST] :smile:")
    output.json({"score": float("nan"), "path": None, "é": 1})
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "plain [/INST] :smile:"
    assert json.loads(out.splitlines()[1]) == {"score": None, "path": None, "é": 1}
    assert err == ""


def test_status_warnings_and_hints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output.configure()
    output.status("reading a\nfile")
    output.warn("two\nlines")
    output.detail("unseen")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "reading a file\nwarning: two lines\n"


def test_quiet_leaves_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output.configure(quiet=True)
    output.status("reading")
    output.warn("careful")
    output.error({"error": {"type": "InputError", "message": "broken\nfile", "hint": "mend it"}}, as_json=False)
    assert capsys.readouterr().err == "error: broken file\nhint: mend it\n"


def test_an_error_as_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    error = {"error": {"type": "InputError", "message": "broken", "hint": None}}
    Output.current().error(error, as_json=True)
    assert json.loads(capsys.readouterr().err) == error


def test_untrusted_text_loses_what_drives_a_terminal() -> None:
    hostile = "a\x1b[2Jb\x07\x9b31mc\u202etxt.exe\rd\ne\tf"
    assert Output.clean(hostile) == "a[2Jb31mctxt.exed\ne\tf"


def test_a_table_off_a_terminal_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("name", "text")
    table.add_row("[bold]x[/bold] [/INST]", "word " * 40 + "end")
    Output.current().table(table)
    out = capsys.readouterr().out
    assert "[bold]x[/bold] [/INST]" in out
    assert any("x" in line and "end" in line for line in out.splitlines())
    assert not any(line.endswith(" ") for line in out.splitlines())
