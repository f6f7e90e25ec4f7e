"""The public package: importing it is cheap, and using a name registers the method with PEFT."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def run(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_no_torch() -> None:
    assert run("import m2pt_cli, sys; print('torch' in sys.modules, m2pt_cli.__version__ != '')") == "False True"


def test_taking_any_public_name_registers_the_method() -> None:
    script = "from m2pt_cli import {}; from peft import PeftType; print(PeftType('M2PT').value)"
    with ThreadPoolExecutor() as side_by_side:  # each a process that imports torch
        assert list(side_by_side.map(run, map(script.format, ("M2PTConfig", "load")))) == ["M2PT", "M2PT"]


def test_every_public_name_is_there() -> None:
    import m2pt_cli

    assert set(m2pt_cli.__all__) == {*m2pt_cli._EXPORTS, "__version__"}
    for name in m2pt_cli.__all__:
        assert getattr(m2pt_cli, name) is not None
    assert not hasattr(m2pt_cli, "no_such_name")
