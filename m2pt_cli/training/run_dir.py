"""The run directory: its name, its creation, ``run.yaml``, and the rules for using one that is not empty."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2pt_cli.data.sources import KNOWN
from m2pt_cli.errors import InputError, SettingsError
from m2pt_cli.files.adapter_names import CONFIG_FILE, WEIGHTS_FILE
from m2pt_cli.settings import TrainSettings, flag, read_yaml
from m2pt_cli.settings.paths import (
    WORKING_DIRECTORY,
    located,
    said_working_directory,
    shortened_settings,
    shown_working_directory,
)
from m2pt_cli.training.checkpoints import checkpoints, digest, write_text
from m2pt_cli.training.metrics_file import METRICS_FILE, read_rows

RUN_FILE = "run.yaml"
LOSS_FILE = "loss.png"
CARD_FILE = "README.md"
RUNS = Path("runs")

# Settings that may differ when a run is resumed: they do not change what is learned.
_FREE = {
    "output_dir", "resume", "overwrite", "device", "threads", "workers", "report_to", "keep", "save_steps",
    "allow_url", "images", "skip_bad",
}  # fmt: skip
# The files that a run writes; --overwrite removes only these.
_OWN = (
    RUN_FILE, METRICS_FILE, LOSS_FILE, CARD_FILE, CONFIG_FILE, WEIGHTS_FILE,
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "processor_config.json", "preprocessor_config.json", "tokenizer*", "special_tokens_map.json",
    "chat_template*", "checkpoint-*", ".checkpoint-*.partial", ".final.partial", "trackers",
)  # fmt: skip


def settings_file(config: Path | None, *, output_dir: Path | None, resume: bool) -> Path | None:
    """Return the file whose settings the flags override: ``--config``, or for ``--resume`` the run's ``run.yaml``."""
    if config is None and resume and output_dir is not None:
        return find_run_file(output_dir)
    return config


def find_run_file(folder: Path) -> Path | None:
    """Return the run's ``run.yaml``; if missing or damaged, the copy in its newest checkpoint that has one.

    None if there is neither; the damaged file if there is nothing else.
    """
    own = folder / RUN_FILE
    copies = [path / RUN_FILE for _, path in reversed(checkpoints(folder))]
    found = next((file for file in (own, *copies) if _is_whole(file)), None)
    return found or (own if own.is_file() else None)


def _is_whole(file: Path) -> bool:
    try:
        # A truncated file lacks the final newline.
        return isinstance(read_yaml(file).get("settings"), dict) and file.read_bytes().endswith(b"\n")
    except InputError:
        return False


def default_name(settings: TrainSettings, base: str) -> str:
    """Return the default name of a run's folder: ``<method>-<base>-<data>``."""
    parts = [settings.method, _short(base), "+".join(_short(name) for name in settings.data)]
    return "-".join(parts)[:120]


def claim(settings: TrainSettings, base: str) -> Path:
    """Return the run directory and create it if necessary.

    Raises:
        SettingsError: see `check_free`; or it can't be written.
    """
    if settings.output_dir is None:
        return _claim_default(settings, base)
    check_free(settings)
    _make(settings.output_dir)
    return settings.output_dir


def check_free(settings: TrainSettings) -> None:
    """Raise for an output directory that must not be used; the default one may always be used.

    A run that never finished a step counts as nothing, if its settings are the same (`require_same_settings`).

    Raises:
        SettingsError: it is a file; it is not empty, and neither ``resume`` nor ``overwrite`` is set; or there is no
            run to resume, but a file that a new one would replace.
    """
    folder = settings.output_dir
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--output-dir {folder} is a file", "name a folder that is empty or does not exist")
    if settings.overwrite or not folder.is_dir() or (find_run_file(folder) is not None and settings.resume):
        return
    if settings.resume:
        own = sorted(path.name for pattern in _OWN for path in folder.glob(pattern) if path.name[0] != ".")
        if own:
            raise SettingsError(
                f"--resume: {folder} holds no {RUN_FILE}, so there is no run to continue, but {own[0]}, which a new "
                "run would replace",
                "name another folder, or use --overwrite to start anew",
            )
    elif any(folder.iterdir()) and not is_unstarted(folder):
        raise SettingsError(
            f"--output-dir {folder} is not empty",
            "name another folder, or use --resume to continue the run in it, or --overwrite to start anew",
        )


def is_unstarted(folder: Path) -> bool:
    """Return whether a folder contains only a run that never finished a step."""
    own = {path for pattern in (RUN_FILE, METRICS_FILE, ".*.partial", "trackers") for path in folder.glob(pattern)}
    if set(folder.iterdir()) - own or not (folder / RUN_FILE).is_file():
        return False
    return not read_rows(folder / METRICS_FILE)


def lost_files(folder: Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Return the missing or damaged files of a finished adapter or model, each with the reason.

    Args:
        result: the run's result, as in ``run.yaml``.
    """
    written = result.get("files")
    if not isinstance(written, dict):  # an older run, which did not record them
        written = {WEIGHTS_FILE: {"bytes": result.get("bytes")}, CONFIG_FILE: {}}
        if not (folder / CONFIG_FILE).is_file() and (folder / "config.json").is_file():
            return {}
    faults = {name: _fault(folder / name, said or {}) for name, said in written.items()}
    return {name: fault for name, fault in faults.items() if fault is not None}


def missing_reports(folder: Path) -> list[str]:
    """Return the files other than the weights that a finished run lacks, or that are empty."""
    files = [folder / name for name in (CARD_FILE, LOSS_FILE, METRICS_FILE)]
    return [file.name for file in files if not file.is_file() or not file.stat().st_size]


def _fault(file: Path, written: Mapping[str, Any]) -> str | None:
    if not file.is_file():
        return "is missing"
    if written.get("bytes") not in (None, file.stat().st_size):
        return f"has {file.stat().st_size} bytes instead of {written['bytes']}"
    if written.get("sha256") not in (None, digest(file)):
        return "was changed"
    try:
        if file.suffix == ".json":  # may be edited, but not broken
            json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "is damaged"
    return None


def new_folders(settings: TrainSettings) -> list[Path]:
    """Return the folders that `claim` will create, innermost first, except the numbered default folder itself."""
    folder = RUNS if settings.output_dir is None else settings.output_dir
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _claim_default(settings: TrainSettings, base: str) -> Path:
    name = default_name(settings, base)
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    found = {int(match[1]): path for path in RUNS.glob("*") if (match := pattern.fullmatch(path.name))}
    if settings.resume and found:
        newest = found[max(found)]
        # A run that was killed before it wrote anything left an empty folder.
        if find_run_file(newest) is not None or not any(newest.iterdir()):
            return newest
    _make(RUNS)
    number = max(found, default=0) + 1
    while True:
        folder = RUNS / f"{name}-{number}"
        try:
            folder.mkdir()  # fails if another run takes the same number at this moment
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
    """Remove only the files that an earlier run wrote: the folder may contain the user's own files."""
    for pattern in _OWN:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def write_run_file(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``run.yaml``: resolved settings, data, base, versions and, once finished, the result.

    Paths below the working directory of the run's first start are written as ``./x``, those below the home folder as
    ``~/x``: the file contains no user name, and may be moved together with the data.
    """
    earlier = find_run_file(folder)
    start = (earlier and said_working_directory(read_yaml(earlier), earlier)) or Path.cwd()
    shorter: dict[str, Any] = {WORKING_DIRECTORY: shown_working_directory(start, folder), **content}
    shorter["settings"] = shortened_settings(content["settings"], start)
    base = content.get("base")
    if isinstance(base, Mapping) and "name" in base:
        shorter["base"] = {**base, "name": shortened_settings({"base": base["name"]}, start)["base"]}
    write_text(folder / RUN_FILE, _as_yaml(shorter))


def _as_yaml(content: Mapping[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    return f"# Repeat this run: m2pt train --config {RUN_FILE}\n{text}"


def copy_run(run_dir: Path, checkpoint: Path) -> None:
    """Copy ``run.yaml`` and ``metrics.jsonl`` into a checkpoint, so that it can be resumed without the originals."""
    if (run_dir / RUN_FILE).is_file():
        content = read_yaml(run_dir / RUN_FILE)
        if str(content.get(WORKING_DIRECTORY, "/")).startswith("."):
            content[WORKING_DIRECTORY] = f"../{content[WORKING_DIRECTORY]}"
        (checkpoint / RUN_FILE).write_text(_as_yaml(content), encoding="utf-8")
    if (run_dir / METRICS_FILE).is_file():
        shutil.copyfile(run_dir / METRICS_FILE, checkpoint / METRICS_FILE)


def read_run_file(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.yaml`` with absolute paths.

    Raises:
        InputError: it is missing or damaged, and no checkpoint has a copy.
    """
    file = find_run_file(folder) or folder / RUN_FILE
    content = read_yaml(file)
    if not isinstance(content.get("settings"), dict):
        raise InputError(f"{file} holds no settings", "start anew with --overwrite")
    return content | {"settings": located(content, file)}


def kept_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings for ``run.yaml``: all except those about the folder itself, with absolute paths."""
    values = settings.to_dict()
    for name in ("output_dir", "resume", "overwrite"):
        values.pop(name)
    values["data"] = [
        name if name in KNOWN or not Path(name).exists() else str(Path(name).resolve()) for name in settings.data
    ]
    values["images"] = [str(path.resolve()) for path in settings.images]
    if settings.validation is not None and Path(settings.validation).is_file():
        values["validation"] = str(Path(settings.validation).resolve())
    return values


def require_same_settings(folder: Path, mine: Mapping[str, Any]) -> None:
    """Raise for a folder whose run never finished a step, unless its settings are the same: then it counts as empty.

    Raises:
        SettingsError: the settings differ; the message names every difference.
    """
    theirs = read_run_file(folder)
    faults = _differences(mine, theirs)
    if faults:
        raise SettingsError(
            f"--output-dir {folder} is not empty: it holds a run with other settings ({'; '.join(faults)})",
            "name another folder, or use --overwrite to start anew",
        )


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return [
        f"{flag(name)} is {value!r} here and {theirs['settings'].get(name)!r} in the run"
        for name, value in mine["settings"].items()
        if name not in _FREE and theirs["settings"].get(name) != value
    ]


def require_same_run(folder: Path, mine: Mapping[str, Any]) -> None:
    """Raise if a run is resumed with other settings, data, or another base.

    Args:
        mine: the content that this start would write into ``run.yaml``.

    Raises:
        SettingsError: something differs; the message names every difference, old and new value.
    """
    theirs = read_run_file(folder)
    faults = _differences(mine, theirs)
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
