"""The runs of one evaluation before any model is loaded: adapters read, the base named, folders checked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.run_dir import RESULTS, EvaluationFolder
from m2pt_cli.evaluation.task import Task
from m2pt_cli.models.adapters import AdapterInfo, read_adapter, require_same_base
from m2pt_cli.models.catalog import BaseEntry, entry_of, resolve_base_name
from m2pt_cli.models.fingerprint import base_fingerprint
from m2pt_cli.runtime.distributed import Sharding
from m2pt_cli.settings import EvalSettings

# What --adapter calls the bare base.
NO_ADAPTER = "none"


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """One run before its base is loaded."""

    name: str
    base: str
    entry: BaseEntry
    adapter: AdapterInfo | None
    folder: EvaluationFolder

    def known_identity(self, settings: EvalSettings) -> dict[str, Any]:
        """What decides this run's answers, but for the base's fingerprint and number type."""
        own = self.adapter
        defaults = self.entry.defaults
        return {
            "base": self.base,
            "adapter": None if own is None else own.fingerprint,
            "template": settings.template or (own and own.chat_template) or defaults.template,
            "image_fit": settings.image_fit or (own and own.image_fit) or defaults.image_fit,
            "visual_tokens": None if own is None else own.visual_tokens,
            "wording": settings.wording,
            "protocol": settings.protocol,
            "source": settings.source,
            "limit": settings.limit,
            "max_new_tokens": settings.max_new_tokens,
            "ocr": settings.ocr,
            "seed": settings.seed,
        }

    def warnings(self, settings: EvalSettings) -> list[str]:
        """Flags that contradict what the adapter was trained with."""
        if self.adapter is None:
            return []
        pairs = [
            ("--template", settings.template, self.adapter.chat_template),
            ("--image-fit", settings.image_fit, self.adapter.image_fit),
        ]
        return [
            f"{flag} {said} differs from {own}, with which the adapter {self.name} was trained"
            for flag, said, own in pairs
            if said is not None and own is not None and said != own
        ]


def plan_runs(settings: EvalSettings, benchmarks: Sequence[Task], share: Sharding) -> list[RunPlan]:
    """Plan one run per adapter: all the checks that need no model, the cheapest first.

    Raises:
        AdapterError: an adapter that is missing or damaged.
        SettingsError: an output directory that holds something else.
        UnavailableError: a base that can't be had.
    """
    adapters = [None if name == NO_ADAPTER else read_adapter(name) for name in settings.adapter or (NO_ADAPTER,)]
    own_base = next((info.base for info in adapters if info is not None and info.base is not None), None)
    base = resolve_base_name(settings.base, own_base)
    entry = entry_of(base)
    names = _unique([base_label(base) if info is None else info.name for info in adapters])
    root = settings.output_dir or default_folder(names, [bench.name for bench in benchmarks])
    folders = [root] if len(names) == 1 else [root / name for name in names]
    plans = [
        RunPlan(name, base, entry, info, EvaluationFolder(folder))
        for name, info, folder in zip(names, adapters, folders, strict=True)
    ]
    for info in adapters:
        # A base that must be downloaded waits until the data sets are known to be there.
        if info is not None and entry.folder is not None:
            require_same_base(info, entry.name, base_fingerprint(entry.folder))
    if not share.is_first:
        return plans
    if len(plans) > 1 and root.is_dir():
        _check_root(root, names)
    for plan in plans:
        plan.folder.claim(plan.known_identity(settings), overwrite=settings.overwrite)
        plan.folder.require_writable()
    return plans


def _check_root(root: Path, names: Sequence[str]) -> None:
    """A folder of several runs holds theirs alone."""
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in {*names, RESULTS})
    if others:
        raise SettingsError(
            f"--output-dir {root} holds {others[0]!r}, which is none of these runs ({', '.join(names)})",
            "name another --output-dir",
        )


def default_folder(names: Sequence[str], benches: Sequence[str]) -> Path:
    """``evals/<adapter or base>-<bench>``, several joined by ``+``."""
    return Path("evals") / f"{'+'.join(names)}-{'+'.join(benches)}"


def base_label(base: str) -> str:
    """A base's name as a part of a path: the last part of a Hub id or folder."""
    return base.rstrip("/").rpartition("/")[2] or "base"


def _unique(names: Sequence[str]) -> list[str]:
    """Equal names told apart by a number."""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return unique
