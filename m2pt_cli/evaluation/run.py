"""``m2pt eval``: benchmarks, adapters and folders tied together; cheap checks first."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.bases.adapters import AdapterInfo, read_adapter
from m2pt_cli.bases.catalog import BaseEntry, entry_of, resolve_base_name
from m2pt_cli.errors import SettingsError
from m2pt_cli.evaluation.benchmark import Benchmark, Request
from m2pt_cli.evaluation.benchmarks import find_benchmarks
from m2pt_cli.evaluation.blocks import score_block
from m2pt_cli.evaluation.events import Events, Notice, ignore
from m2pt_cli.evaluation.files import write_json
from m2pt_cli.evaluation.folder import RESULTS, EvaluationFolder
from m2pt_cli.evaluation.mmavg import mmavg
from m2pt_cli.evaluation.rescore import rescore
from m2pt_cli.evaluation.results import EvalResult, EvalRun, library_versions
from m2pt_cli.evaluation.rows import Item
from m2pt_cli.evaluation.shuffle import shuffle_images
from m2pt_cli.settings import EvalSettings

if TYPE_CHECKING:
    from m2pt_cli.bases.loading import LoadedBase
    from m2pt_cli.evaluation.session import Session

NO_ADAPTER = "none"


def run_evaluation(settings: EvalSettings, *, events: Events = ignore) -> EvalResult:
    """Answer and score benchmarks with a base and its adapters, resuming what an earlier start left.

    Args:
        settings: benchmarks, adapters (``none`` is the bare base), and how they are asked.
        events: told of notices and of every answer.

    Returns:
        The scores of every run; the same content is in ``results.json``.

    Raises:
        SettingsError: an unknown benchmark, or an output directory that holds something else.
        InputError: a data file that can't be read.
        AdapterError: an adapter that is missing, damaged or of another base.
        UnavailableError: a base or a data set that can't be had.
        GenerationError: every question of a benchmark failed.
    """
    benchmarks = find_benchmarks(settings.bench)
    _check_options(settings, benchmarks)
    if settings.predictions is not None:
        return rescore(settings, benchmarks[0], events=events)
    plans = _plan_runs(settings, benchmarks)
    folder = plans[0].folder.path.parent if len(plans) > 1 else plans[0].folder.path
    events(Notice(f"writing to {folder}"))
    request = Request(
        limit=settings.limit,
        wording=settings.wording,
        source=settings.source,
        images=settings.images,
        allow_url=settings.allow_url,
        ocr=settings.ocr,
        report=lambda text: events(Notice(text)),
    )
    items = {bench.name: bench.items(request) for bench in benchmarks}
    # The first import of torch: everything that can be wrong without a model has been checked.
    from m2pt_cli.bases.loading import load_base, set_seed, set_threads

    set_threads(settings.threads)
    set_seed(settings.seed)
    loaded = load_base(
        plans[0].base, device=settings.device, dtype=settings.dtype, report=lambda text: events(Notice(text))
    )
    runs = tuple(_run(plan, settings, loaded, benchmarks, items, events) for plan in plans)
    result = EvalResult(runs, folder)
    if len(runs) > 1:
        write_json(folder / RESULTS, result.to_dict())
    return result


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One run before its base is loaded."""

    name: str
    base: str
    entry: BaseEntry
    adapter: AdapterInfo | None
    folder: EvaluationFolder

    def known_identity(self, settings: EvalSettings) -> dict[str, Any]:
        """What decides this run's answers, but for the base's fingerprint."""
        return {
            "base": self.base,
            "adapter": None if self.adapter is None else self.adapter.fingerprint,
            "template": self._choose("template", settings.template, self.adapter and self.adapter.chat_template),
            "image_fit": self._choose("image_fit", settings.image_fit, self.adapter and self.adapter.image_fit),
            "visual_tokens": None if self.adapter is None else self.adapter.visual_tokens,
            "wording": settings.wording,
            "protocol": settings.protocol,
            "source": settings.source,
            "limit": settings.limit,
            "max_new_tokens": settings.max_new_tokens,
            "ocr": settings.ocr,
            "dtype": settings.dtype,
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

    def _choose(self, name: str, said: str | None, own: str | None) -> str:
        default: str = getattr(self.entry.defaults, name)
        return said or own or default


def _check_options(settings: EvalSettings, benchmarks: Sequence[Benchmark]) -> None:
    without = [bench.name for bench in benchmarks if not bench.has_protocols]
    if settings.protocol != "official" and without:
        raise SettingsError(
            f"--protocol {settings.protocol} means nothing to --bench {without[0]}",
            "leave it out: mme and pope alone have several protocols",
        )
    if settings.predictions is not None and len(benchmarks) > 1:
        raise SettingsError("--predictions scores one benchmark", "give --bench once")
    if settings.source is not None and len(benchmarks) > 1:
        raise SettingsError("--source is the place of one benchmark's data", "give --bench once")
    if settings.ocr and all(bench.name != "textvqa" for bench in benchmarks):
        raise SettingsError("--ocr means something to --bench textvqa alone", "leave it out")


def _plan_runs(settings: EvalSettings, benchmarks: Sequence[Benchmark]) -> list[_Plan]:
    """Adapters read, the base named, output folders checked: all that needs no model."""
    adapters = [None if name == NO_ADAPTER else read_adapter(name) for name in settings.adapter or (NO_ADAPTER,)]
    own_base = next((info.base for info in adapters if info is not None and info.base is not None), None)
    base = resolve_base_name(settings.base, own_base)
    entry = entry_of(base)
    names = _unique([base_label(base) if info is None else info.name for info in adapters])
    root = settings.output_dir or default_folder(names, [bench.name for bench in benchmarks])
    folders = [root] if len(names) == 1 else [root / name for name in names]
    plans = [
        _Plan(name, base, entry, info, EvaluationFolder(folder))
        for name, info, folder in zip(names, adapters, folders, strict=True)
    ]
    if len(plans) > 1 and root.is_dir():
        _check_root(root, names)
    for plan in plans:
        plan.folder.claim(plan.known_identity(settings), overwrite=settings.overwrite)
        plan.folder.create()
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


def _run(
    plan: _Plan,
    settings: EvalSettings,
    loaded: LoadedBase,
    benchmarks: Sequence[Benchmark],
    items: Mapping[str, list[Item]],
    events: Events,
) -> EvalRun:
    from m2pt_cli.answering.engine import AnswerEngine, Decoding
    from m2pt_cli.bases.adapters import attach_adapter
    from m2pt_cli.evaluation.session import Session

    found = plan.folder.results()
    identity = {**plan.known_identity(settings), "base_fingerprint": loaded.fingerprint}
    plan.folder.claim(identity, overwrite=settings.overwrite)
    for text in plan.warnings(settings):
        events(Notice(text, is_warning=True))
    peft_model = None if plan.adapter is None else attach_adapter(loaded, plan.adapter)
    try:
        engine = AnswerEngine(
            loaded if peft_model is None else dataclasses.replace(loaded, model=peft_model),
            template=identity["template"],
            image_fit=identity["image_fit"],
            decoding=Decoding(seed=settings.seed),
            batch_tokens=settings.batch_tokens,
        )
        session = Session(engine, plan.folder, name=plan.name, identity=identity, events=events)
        blocks: dict[str, Any] = dict(found["benchmarks"]) if found is not None else {}
        for bench in benchmarks:
            earlier = blocks.get(bench.name, {})
            blocks[bench.name] = _block(session, bench, items[bench.name], settings, earlier)
            for note in blocks[bench.name]["notes"]:
                events(Notice(f"{bench.name}: {note}", is_warning=True))
    finally:
        if peft_model is not None:
            peft_model.unload()
    run = EvalRun(
        base=plan.base,
        adapter=None if plan.adapter is None else {"name": plan.name, "fingerprint": plan.adapter.fingerprint},
        benchmarks=blocks,
        settings={key: value for key, value in identity.items() if key not in ("base", "adapter")},
        versions=library_versions("torch", "transformers", "peft"),
        seconds=round(session.seconds, 3),
        resumed=session.resumed,
        mmavg=mmavg(blocks),
    )
    plan.folder.write_results(dataclasses.asdict(run))
    return run


def _block(
    session: Session, bench: Benchmark, items: list[Item], settings: EvalSettings, earlier: Mapping[str, Any]
) -> dict[str, Any]:
    """A benchmark's scores, with those of the blind control beside them."""
    most = settings.max_new_tokens or bench.max_new_tokens
    rows = session.rows(bench, items, label=bench.name, max_new_tokens=most)
    block = score_block(bench, rows, settings.protocol)
    if not settings.shuffle_images:
        return {**block, "shuffled": earlier.get("shuffled")}
    blind_items = shuffle_images(items, seed=settings.seed)
    blind = session.rows(bench, blind_items, label=f"{bench.name}-shuffled", max_new_tokens=most)
    return {**block, "shuffled": bench.scores(blind, settings.protocol)}
