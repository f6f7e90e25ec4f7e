"""Errors of the command line, and what it imports."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m2pt_cli.cli.app import app, main

HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "sklearn")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "m2pt_cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *([command, "--help"] for command in ("train", "eval", "infer", "count-params")),
        ["--help"],
        ["--version"],
        ["train"],
        ["train", "--data", "demo", "--method", "loro"],
        ["infer", "missing.png", "What?"],
        ["eval"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from m2pt_cli.cli.app import main; main(sys.argv[1:]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_of_the_contract_has_help_and_examples() -> None:
    assert {command.name for command in app.registered_commands} >= {"train", "eval", "infer", "count-params"}
    for command in app.registered_commands:
        assert command.help
        assert command.epilog
        assert "m2pt " in command.epilog


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


def test_an_unknown_command_and_an_unknown_flag_are_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert main(["train", "--dta", "demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"] * 2


def test_a_parse_error_is_json_where_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--max-steps", "many", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert set(error) == {"type", "message", "hint"}
    assert "max-steps" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--data", "demo", "--learning-rate", "-1"], 2),
        (["infer", "no-such.png", "What?", "--base", "nano"], 3),
        (["infer", "--input", "no-such.jsonl", "--base", "nano"], 3),
        (["eval", "--bench", "demo", "--adapter", "no-such-folder"], 4),
        (["eval", "--bench", "dmeo"], 2),
        (["attn-map", "image.png", "", "--base", "nano"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]


def test_codes_reach_the_shell_and_no_traceback_does() -> None:
    done = run("infer", "no-such.png", "What?", "--base", "nano")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback() -> None:
    done = run("infer", "no-such.png", "What?", "--base", "nano", M2PT_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_a_fault_of_the_machine_says_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count-params", "--base", "no/such-base"]) == 1  # a Hub that can't be reached
    assert "M2PT_DEBUG=1" in capsys.readouterr().err
    for arguments, code in ((["--base", "naon"], 1), (["--method", "visal"], 2)):
        assert main(["count-params", *arguments]) == code
        err = capsys.readouterr().err
        assert "Did you mean" in err and "M2PT_DEBUG" not in err


@pytest.mark.parametrize("words", [["help"], ["help", "train"], ["help", "count-params"]])
def test_help_is_a_word_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert main([*words[1:], "--help"]) == 0
    assert capsys.readouterr().out == said != ""


def test_help_of_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_the_version_has_a_short_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["-V"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith("m2pt ")


@pytest.mark.parametrize("flag", ["--seed=4294967296", f"--seed={10**400}", "--threads=1e308"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", "--base", "nano", "--data", "demo"],
        ["infer", "a.png", "what", "--base", "nano"],
        ["eval", "--base", "nano", "--bench", "demo"],
        ["attn-map", "a.png", "what", "--base", "nano"],
    ],
    ids=lambda words: words[0],
)
def test_numbers_out_of_range_are_code_2(command: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, flag]) == 2
    out, err = capsys.readouterr()
    assert out == "" and [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]


def test_a_closed_pipe_ends_quietly() -> None:
    script = f"{sys.executable} -m m2pt_cli --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_ctrl_c_is_code_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m2pt_cli.cli.infer.answer_lines", pressed)
    assert main(["infer", "--input", "-", "--json"]) == 130
    assert json.loads(capsys.readouterr().err)["error"]["message"] == "interrupted"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_a_process_without_a_stream_works(closed: str, tmp_path: Path) -> None:
    script = f"{sys.executable} -m m2pt_cli eval --list {closed}; echo $? > {tmp_path}/code"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert (tmp_path / "code").read_text() == "0\n" and "Traceback" not in done.stderr
    assert ("textvqa" in done.stdout) is not closed.startswith(">&-")


def test_a_full_disk_behind_stdout_is_one_line_and_code_1() -> None:
    script = f"{sys.executable} -m m2pt_cli eval --list > /dev/full"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("option", ["--adapter", "--base", "--output-dir"])
def test_a_name_no_file_system_takes_is_no_traceback(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--bench", "demo", option, "x" * 300]) == 2
    assert "no file system takes such a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EFBIG, "ulimit -f"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full")],
)
def test_a_file_system_without_room_is_one_line_and_code_1(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("m2pt_cli.models.count.count_parameters", fail)
    assert main(["count-params", "--base", "nano"]) == 1
    err = capsys.readouterr().err
    assert said in err and "hint: " in err and "Traceback" not in err
