"""Plans the runs of an evaluation before a model is loaded: reads adapters, chooses the base, checks folders."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.run_dir import RESULTS, EvaluationFolder
from m2pt_cli.evaluation.task import Task
from m2pt_cli.generation.candidates import PromptFormat, prompt_format, read_candidates
from m2pt_cli.models.adapters import AdapterInfo
from m2pt_cli.models.catalog import BaseEntry
from m2pt_cli.runtime.distributed import Sharding
from m2pt_cli.settings import EvalSettings


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """One planned run: an adapter (or the base model), its base and its output folder."""

    name: str
    base: str
    entry: BaseEntry
    adapter: AdapterInfo | None
    folder: EvaluationFolder

    def known_identity(self, settings: EvalSettings) -> dict[str, Any]:
        """Return the settings that decide this run's answers, except the base's fingerprint and dtype."""
        adapter, chosen = self.adapter, self.prompt_format(settings)
        return {
            "base": self.base,
            "adapter": None if adapter is None else adapter.fingerprint,
            "template": chosen.template,
            "image_fit": chosen.image_fit,
            "visual_tokens": None if adapter is None else adapter.visual_tokens,
            "wording": settings.wording,
            "protocol": settings.protocol,
            "source": settings.source,
            "limit": settings.limit,
            "max_new_tokens": settings.max_new_tokens,
            "ocr": settings.ocr,
            "seed": settings.seed,
        }

    def prompt_format(self, settings: EvalSettings) -> PromptFormat:
        """Return template and image fit of this run, with warnings if the flags contradict the adapter's training."""
        return prompt_format(self.entry, self.adapter, template=settings.template, image_fit=settings.image_fit)


def plan_runs(settings: EvalSettings, benchmarks: Sequence[Task], sharding: Sharding) -> list[RunPlan]:
    """Plan one run per adapter, and make all checks that need no model.

    Raises:
        AdapterError: an adapter is missing, damaged or of another base, or two adapters have different bases.
        SettingsError: an output directory contains something else.
        UnavailableError: the base is not available.
    """
    found = read_candidates(settings.adapter, settings.base)
    base, entry, adapters = found.base, found.entry, [member.info for member in found.members]
    names = _unique([base_label(base) if info is None else info.name for info in adapters])
    root = settings.output_dir or default_folder(names, [bench.name for bench in benchmarks])
    folders = [root] if len(names) == 1 else [root / name for name in names]
    plans = [
        RunPlan(name, base, entry, info, EvaluationFolder(folder))
        for name, info, folder in zip(names, adapters, folders, strict=True)
    ]
    if not sharding.is_first:
        return plans
    if len(plans) > 1 and root.is_dir():
        _check_root(root, names)
    for plan in plans:
        plan.folder.claim(plan.known_identity(settings), overwrite=settings.overwrite)
        _require_all_benchmarks(plan.folder, [bench.name for bench in benchmarks], settings.limit)
        plan.folder.require_writable()
    return plans


def _require_all_benchmarks(folder: EvaluationFolder, names: Sequence[str], limit: int | None) -> None:
    """A larger ``--limit`` is one for all benchmarks of a folder: results.json records one."""
    results = folder.results()
    if results is None or results.get("settings", {}).get("limit") == limit:
        return
    missing = [name for name in results.get("benchmarks", {}) if name not in names]
    if missing:
        raise SettingsError(
            f"--output-dir {folder.path} holds {', '.join(missing)} as well, with another --limit",
            f"add --bench {','.join(missing)}, or name another --output-dir",
        )


def _check_root(root: Path, names: Sequence[str]) -> None:
    """Check that a folder of several runs contains only theirs."""
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in {*names, RESULTS})
    if others:
        raise SettingsError(
            f"--output-dir {root} holds {others[0]!r}, which is none of these runs ({', '.join(names)})",
            "name another --output-dir",
        )


def default_folder(names: Sequence[str], benches: Sequence[str]) -> Path:
    """Return ``evals/<adapter or base>-<bench>``; several names are joined by ``+``."""
    return Path("evals") / f"{'+'.join(names)}-{'+'.join(benches)}"


def base_label(base: str) -> str:
    """Return a base's name for use in a path: the last part of a Hub id or folder."""
    return base.rstrip("/").rpartition("/")[2] or "base"


def _unique(names: Sequence[str]) -> list[str]:
    """Make names unique: append ``-2``, ``-3``, … to repeated ones."""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return unique
