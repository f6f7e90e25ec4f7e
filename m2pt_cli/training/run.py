"""Run a training from settings to the finished run directory."""

from __future__ import annotations

import dataclasses
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2pt_cli.errors import DeviceError, InputError, Interrupted, is_out_of_memory
from m2pt_cli.files.io import hold_folder, release_folder
from m2pt_cli.records import TrainResult
from m2pt_cli.runtime.distributed import agreed, connected, first_then_others, is_first_process, process_count
from m2pt_cli.settings import TrainSettings
from m2pt_cli.training.checkpoints import checkpoints, latest_checkpoint
from m2pt_cli.training.events import Events, Notice, Started, ignore
from m2pt_cli.training.metrics_file import METRICS_FILE, earlier, read_rows, restore_rows
from m2pt_cli.training.plan import Plan, base_name, make_plan, passes
from m2pt_cli.training.run_dir import (
    claim,
    clear,
    find_run_file,
    kept_settings,
    lost_files,
    missing_reports,
    new_folders,
    read_run_file,
    require_same_run,
    require_same_settings,
    write_run_file,
)
from m2pt_cli.version import LIBRARIES, library_versions

if TYPE_CHECKING:
    from m2pt_cli.training.setup import Prepared


def run_training(settings: TrainSettings, *, events: Events = ignore) -> TrainResult:
    """Train as ``m2pt train`` does.

    Cheap checks come first: settings, output directory, data, base.

    Args:
        settings: a value of None means the base's default.
        events: is called with every event; nothing is printed.

    Raises:
        SettingsError: an invalid setting, or an output directory that can't be used.
        InputError: missing or faulty data.
        UnavailableError: the base, a data set or a tracker is not available.
        DeviceError: the device is not available, or memory or disk space ran out.
        DivergenceError: a loss or a weight became NaN or infinite; the last good checkpoint is kept.
        Interrupted: SIGINT or SIGTERM; a checkpoint was saved.
    """
    events = events if is_first_process() else ignore
    base = base_name(settings)
    with connected(settings):
        made = new_folders(settings)
        run_dir = agreed(claim(settings, base) if is_first_process() else Path())
        held: int | None = None
        try:
            if is_first_process():
                held = hold_folder(run_dir, "m2pt train")
            events(Notice(f"output directory: {run_dir}"))
            if settings.resume and agreed(find_run_file(run_dir) is None):
                events(Notice("there is no run to resume: starting one"))
                settings = dataclasses.replace(settings, resume=False)
            plan = first_then_others(partial(make_plan, settings, base=base, events=events))
            with warnings.catch_warnings():
                # Deprecations and advice for callers of the libraries; the user can't act on them.
                warnings.simplefilter("ignore")
                return _run(plan, run_dir, events)
        finally:
            release_folder(held)
            if is_first_process() and (made or settings.output_dir is None):
                with suppress(OSError):
                    for folder in dict.fromkeys([run_dir, *made]):
                        folder.rmdir()  # only if nothing was written


def _run(plan: Plan, run_dir: Path, events: Events) -> TrainResult:
    settings = plan.settings
    record: dict[str, Any] = {
        "settings": kept_settings(settings),
        "data": plan.data,
        "versions": library_versions(*LIBRARIES),
    }
    record["processes"] = process_count()
    if settings.resume:
        require_same_run(run_dir, record)
        finished = _finished(plan, run_dir, events)
        if finished is not None:
            return finished
    restarts = not settings.resume and not settings.overwrite and find_run_file(run_dir) is not None
    if restarts:
        require_same_settings(run_dir, record)
        events(Notice(f"the run in {run_dir} never finished a step: starting anew"))

    from m2pt_cli.training.report import finish
    from m2pt_cli.training.setup import prepare

    started = time.monotonic()
    prepared = prepare(plan, run_dir, events)
    record["base"] = {"name": plan.base, "fingerprint": prepared.loaded.fingerprint}
    record["device"] = prepared.device_record()
    if settings.resume:
        require_same_run(run_dir, record)
    if is_first_process():
        if settings.overwrite or restarts:
            clear(run_dir)
        write_run_file(run_dir, record | {"result": None})
    _train(plan, prepared, events)
    return finish(plan, prepared, record, seconds=time.monotonic() - started, events=events)


def _finished(plan: Plan, run_dir: Path, events: Events) -> TrainResult | None:
    """The result of a run that is complete, its card and curve written again where they are missing; else None."""
    record = read_run_file(run_dir)
    result = record.get("result")
    if not isinstance(result, dict):
        return None
    lost = lost_files(run_dir, result)
    if lost:
        name, fault = next(iter(lost.items()))
        source = "its last checkpoint" if checkpoints(run_dir) else "the first step: no checkpoint was kept"
        events(Notice(f"{run_dir} was finished, but {name} {fault}: going on from {source}", is_warning=True))
        return None
    events(Notice(f"{run_dir} is finished already: nothing to resume"))
    if is_first_process() and missing_reports(run_dir):
        from m2pt_cli.training.report import rewrite_reports

        for text in rewrite_reports(plan, run_dir, record):
            events(Notice(text, is_warning=True))
    fields: dict[str, Any] = {
        name: result.get(name) for name in ("steps", "loss", "validation", "trainable", "seconds", "bytes")
    }
    return TrainResult(output_dir=str(run_dir), method=plan.settings.method, base=plan.base, **fields)


def _train(plan: Plan, prepared: Prepared, events: Events) -> None:
    from m2pt_cli.runtime.signals import stop_on_signals

    settings, run_dir = plan.settings, prepared.run_dir
    checkpoint = None
    if settings.resume:
        checkpoint = latest_checkpoint(run_dir, lambda text: events(Notice(text, is_warning=True)))
        text = f"resuming from {checkpoint}" if checkpoint else f"{run_dir} holds no checkpoint: starting from step 0"
        events(Notice(text))
    first_step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint is not None and is_first_process():
        restore_rows(run_dir, checkpoint, until=first_step)
    before = earlier(read_rows(run_dir / METRICS_FILE), until=first_step)
    with stop_on_signals() as request:
        trainer = prepared.make_trainer(request, events)
        events(
            Started(
                output_dir=run_dir,
                method=settings.method,
                base=plan.base,
                device=str(prepared.loaded.device),
                steps=prepared.steps,
                first_step=first_step,
                samples=len(prepared.data.train),
                validation=len(prepared.data.validation or ()),
                trainable=sum(prepared.parts.values()),
                total=prepared.total,
                passes=passes(settings, prepared.steps, len(prepared.data.train)) or 0.0,
                losses=before.losses,
            )
        )
        try:
            if checkpoint is not None and first_step >= prepared.steps:  # only the final files are missing
                trainer.restore(checkpoint)
                if is_first_process():
                    prepared.recorder.go_on_from(first_step)
            else:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise out_of_memory(settings, error) from error
            raise
        except InputError as error:
            raise broken_sample(error) from error
        finally:
            prepared.recorder.close()
    if trainer.skipped:
        events(Notice(f"{trainer.skipped:,} samples with a broken image were skipped", is_warning=True))
    step = trainer.state.global_step
    if request.signal_number is not None and step < prepared.steps:
        raise Interrupted(
            f"stopped at step {step:,} of {prepared.steps:,}; the checkpoint is complete",
            f"m2pt train --resume --output-dir {run_dir}",
            signal_number=request.signal_number,
        )


def broken_sample(error: InputError) -> InputError:
    """Return a one-line error for an image that can't be decoded.

    torch adds the traceback to the message of an exception from a worker; only the last line is kept.
    """
    message = error.message.strip().splitlines()[-1].rpartition("InputError: ")[2]
    return InputError(message, "repair or remove it and continue with --resume, or with --resume --skip-bad")


def out_of_memory(settings: TrainSettings, error: Exception) -> DeviceError:
    """Return a one-line error for a device that ran out of memory, with the settings to lower."""
    steps = []
    if (settings.batch_size or 1) > 1:
        batch, accumulation = settings.batch_size or 1, settings.accumulation or 1
        steps.append(f"--batch-size {batch // 2} --accumulation {accumulation * 2} (the same effective batch)")
    if not settings.gradient_checkpointing:
        steps.append("--gradient-checkpointing")
    steps.append(f"--max-length {(settings.max_length or 1024) // 2}")
    first = str(error).split(". ")[0].splitlines()[0]
    return DeviceError(f"out of memory while training: {first}", "use " + ", or ".join(steps))
