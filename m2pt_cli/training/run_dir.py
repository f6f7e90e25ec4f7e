"""The run directory: its name and creation, ``run.yaml``, and the checks before reuse or resuming."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.files.adapter_names import CONFIG_FILE, WEIGHTS_FILE
from m2pt_cli.settings import TrainSettings, flag, read_yaml
from m2pt_cli.training.checkpoints import write_text

RUN_FILE = "run.yaml"
METRICS_FILE = "metrics.jsonl"
LOSS_FILE = "loss.png"
CARD_FILE = "README.md"
RUNS = Path("runs")

# Settings that may differ when a run is resumed: none of them changes the trained weights.
_MAY_DIFFER = {
    "output_dir", "resume", "overwrite", "device", "threads", "workers", "report_to", "keep", "save_steps",
    "allow_url", "images", "skip_bad",
}  # fmt: skip
# Files that a run writes; --overwrite removes these and no others.
_RUN_FILES = (
    RUN_FILE, METRICS_FILE, LOSS_FILE, CARD_FILE, CONFIG_FILE, WEIGHTS_FILE,
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json",
    "chat_template*", "checkpoint-*", ".checkpoint-*.partial", ".final.partial", "trackers",
)  # fmt: skip


def settings_file(config: Path | None, *, output_dir: Path | None, resume: bool) -> Path | None:
    """Return the settings file to read: ``--config``, else with ``--resume`` the run's ``run.yaml``, else None."""
    if config is None and resume and output_dir is not None and (output_dir / RUN_FILE).is_file():
        return output_dir / RUN_FILE
    return config


def default_name(settings: TrainSettings, base: str) -> str:
    """Return the default name of a run without its number: ``<method>-<base>-<data>``."""
    parts = [settings.method, _short(base), "+".join(_short(name) for name in settings.data)]
    return "-".join(parts)[:120]


def claim(settings: TrainSettings, base: str) -> Path:
    """Return the run directory and create it if it does not exist.

    Raises:
        SettingsError: the directory is not empty (and neither ``resume`` nor ``overwrite`` is set), is a file, or
            can't be written; or there is no run to resume.
    """
    if settings.output_dir is None:
        return _claim_default(settings, base)
    check_free(settings)
    _make(settings.output_dir)
    return settings.output_dir


def check_free(settings: TrainSettings) -> None:
    """Check that the given output directory may be used; a default one is always new.

    Raises:
        SettingsError: see `claim`.
    """
    folder = settings.output_dir
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--output-dir {folder} is a file", "name a folder that is empty or does not exist")
    if settings.resume and not (folder / RUN_FILE).is_file():
        raise SettingsError(
            f"--resume: {folder} holds no {RUN_FILE}, so there is no run to continue", "leave out --resume to begin one"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (settings.resume or settings.overwrite):
        raise SettingsError(
            f"--output-dir {folder} is not empty",
            "name another folder, or use --resume to continue the run in it, or --overwrite to start anew",
        )


def _claim_default(settings: TrainSettings, base: str) -> Path:
    name = default_name(settings, base)
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    found = {int(match[1]): path for path in RUNS.glob("*") if (match := pattern.fullmatch(path.name))}
    if settings.resume:
        if not found or not (found[max(found)] / RUN_FILE).is_file():
            raise SettingsError(f"--resume: there is no run {RUNS / name}-N", "name it with --output-dir")
        return found[max(found)]
    _make(RUNS)
    number = max(found, default=0) + 1
    while True:
        folder = RUNS / f"{name}-{number}"
        try:
            folder.mkdir()  # fails if another process has just created this number
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _unwritable(folder, error) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".m2pt-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> SettingsError:
    return SettingsError(
        f"--output-dir {folder} can't be written: {error.strerror or error}", "name another folder with --output-dir"
    )


def clear(folder: Path) -> None:
    """Remove the files that a run writes; other files in the folder, such as the user's own, stay."""
    for pattern in _RUN_FILES:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def write_run_file(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``run.yaml``: resolved settings, data, base, versions and, once finished, the result."""
    import yaml

    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    write_text(folder / RUN_FILE, f"# Repeat this run: m2pt train --config {RUN_FILE}\n{text}")


def read_run_file(folder: Path) -> dict[str, Any]:
    """Read ``run.yaml``.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_yaml(folder / RUN_FILE)
    if not isinstance(content.get("settings"), dict):
        raise InputError(f"{folder / RUN_FILE} holds no settings", "start anew with --overwrite")
    return content


def kept_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings for ``run.yaml``: all except ``output_dir``, ``resume`` and ``overwrite``; paths are absolute."""
    values = settings.to_dict()
    for name in ("output_dir", "resume", "overwrite"):
        values.pop(name)
    values["data"] = [str(Path(name).resolve()) if Path(name).exists() else name for name in settings.data]
    values["images"] = [str(path.resolve()) for path in settings.images]
    if settings.validation is not None and Path(settings.validation).is_file():
        values["validation"] = str(Path(settings.validation).resolve())
    return values


def require_same_run(folder: Path, mine: Mapping[str, Any]) -> None:
    """Check that a resumed run has the same settings, data, base and number of processes as before.

    Args:
        folder: the run directory.
        mine: the content that this process would write to ``run.yaml``.

    Raises:
        SettingsError: names every difference with the old and the new value.
    """
    theirs = read_run_file(folder)
    faults = [
        f"{flag(name)} is {value!r} here and {theirs['settings'].get(name)!r} in the run"
        for name, value in mine["settings"].items()
        if name not in _MAY_DIFFER and theirs["settings"].get(name) != value
    ]
    for section, what in (("data", "the data"), ("base", "the base")):
        before = (theirs.get(section) or {}).get("fingerprint")
        now = (mine.get(section) or {}).get("fingerprint")
        if None not in (before, now) and before != now:
            faults.append(f"{what} has changed since the run began (fingerprint {str(before)[:12]} -> {str(now)[:12]})")
    if mine.get("processes", 1) != theirs.get("processes", 1):
        faults.append(f"it runs in {mine.get('processes', 1)} processes here and in {theirs.get('processes', 1)} there")
    if faults:
        raise SettingsError(
            f"{folder} can't be continued: {'; '.join(faults)}",
            f"use the run's own settings (m2pt train --resume --output-dir {folder}), or start anew with --overwrite",
        )


def _short(name: str) -> str:
    last = Path(name.rstrip("/\\")).name
    stem = Path(last).stem if Path(last).suffix in (".json", ".jsonl", ".yaml") else last
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.") or "data"
