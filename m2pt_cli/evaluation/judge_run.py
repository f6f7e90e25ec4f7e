"""Lets a judge model score the answers of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from m2pt_cli.data.chat import get_template
from m2pt_cli.data.sample import Turn
from m2pt_cli.errors import UnavailableError
from m2pt_cli.evaluation.events import Events, Notice
from m2pt_cli.evaluation.judge import Verdicts, is_vision_language, judged_accuracies
from m2pt_cli.evaluation.metrics import mmavg
from m2pt_cli.evaluation.plan import RunPlan
from m2pt_cli.evaluation.results import EvalRun
from m2pt_cli.evaluation.runner import Session, require_answers
from m2pt_cli.evaluation.task import Prediction, Task, TaskOptions
from m2pt_cli.families.processor import quiet_transformers
from m2pt_cli.generation.candidates import build_engine
from m2pt_cli.generation.engine import AnswerEngine, Decoding, Question, Reply
from m2pt_cli.models.load import load_base
from m2pt_cli.runtime.device import choose_device, choose_dtype
from m2pt_cli.runtime.distributed import Sharding
from m2pt_cli.settings import EvalSettings

_BATCH_SIZE = 16


class TextEngine:
    """Answers questions with a text-only causal language model, by greedy decoding.

    Args:
        name: a folder or a Hub id; prompts use its chat template, or ``vicuna_v1`` if it has none.
        device, dtype: as in `load_base`.

    Raises:
        UnavailableError: the model is not available.
    """

    def __init__(self, name: str, *, device: str | None = None, dtype: str = "auto") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = choose_device(device)
        try:
            with quiet_transformers():
                tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, padding_side="left")
                model: Any = AutoModelForCausalLM.from_pretrained(
                    name, dtype=choose_dtype(dtype, place), device_map={"": place}, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"the judge {name} can't be had: {str(error).splitlines()[0]}",
                f"hf download {name} on a machine with a network, or name a folder",
            ) from None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer, self._model, self._device = tokenizer, model.eval(), place

    def answer(
        self, questions: Iterable[Question], *, known: Callable[[Question], bool] | None = None
    ) -> Iterator[Reply]:
        """Yield replies to the unknown questions in order.

        Batches are made of all questions, so that a resumed run has the same batches as an uninterrupted one; a batch
        of known questions only is not run.
        """
        asked = list(questions)
        for start in range(0, len(asked), _BATCH_SIZE):
            batch = asked[start : start + _BATCH_SIZE]
            fresh = [question for question in batch if known is None or not known(question)]
            if fresh:
                answers = dict(zip((question.id for question in batch), self._generate(batch), strict=True))
                yield from (Reply(question, answers[question.id]) for question in fresh)

    @torch.inference_mode()
    def _generate(self, batch: list[Question]) -> list[str]:
        texts = [self._render(question.text) for question in batch]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(self._device)
        out = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max(question.max_new_tokens or 8 for question in batch),
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        # The prompt contains "yes" and "no", so only the generated tokens may be parsed.
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _render(self, text: str) -> str:
        if self._tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            rendered: str = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return rendered
        bos = self._tokenizer.bos_token or ""
        return bos + get_template("vicuna_v1").render([Turn("user", text)], eos="").text


def open_judge(
    name: str, *, device: str | None, dtype: str, report: Callable[[str], None]
) -> AnswerEngine | TextEngine:
    """Load the judge: an `AnswerEngine` (asked without images) for a vision-language model, else a `TextEngine`.

    Raises:
        UnavailableError, DeviceError: the model or the device is not available.
    """
    if not is_vision_language(name):
        return TextEngine(name, device=device, dtype=dtype)
    loaded = load_base(name, device=device, dtype=dtype, report=report)
    return build_engine(loaded, None, decoding=Decoding())


def judge_runs(
    plans: Sequence[RunPlan],
    done: Sequence[tuple[EvalRun, dict[str, list[Prediction]]]],
    benchmarks: Sequence[Task],
    settings: EvalSettings,
    *,
    share: Sharding,
    events: Events,
) -> list[tuple[EvalRun, dict[str, list[Prediction]]]]:
    """Return the runs with the judge's scores added to their results, and write ``results.json`` again.

    The judge does not score MME, as in the paper.

    Raises:
        UnavailableError, DeviceError: the judge or the device is not available.
        GenerationError: every question to the judge failed.
    """
    judge = str(settings.judge)
    engine = open_judge(judge, device=settings.device, dtype=settings.dtype, report=lambda text: events(Notice(text)))
    judged = []
    for plan, (run, rows) in zip(plans, done, strict=True):
        fingerprint = run.adapter and run.adapter["fingerprint"]
        identity = {"base": run.base, "adapter": fingerprint, **run.settings, "judge": judge}
        session = Session(engine, plan.folder, name=plan.name, identity=identity, share=share, events=events)
        results = dict(run.benchmarks)
        for bench in benchmarks:
            # Every process needs all answers; they are in the predictions file that the first process wrote.
            answers = list(plan.folder.finished_rows(bench.name).values())
            if bench.name == "mme" or not answers:
                continue
            verdicts = Verdicts(bench.name, answers)
            judged_answers = session.rows(
                verdicts, verdicts.items(TaskOptions()), label=verdicts.name, max_new_tokens=verdicts.max_new_tokens
            )
            if share.is_first:
                require_answers({verdicts.name: judged_answers}, plan.folder)
            scores = verdicts.scores(judged_answers, settings.protocol)
            results[bench.name] = {**results[bench.name], "judge": {"name": judge, **scores}}
            agreement = "none" if scores["agreement"] is None else f"{100 * scores['agreement']:.1f} %"
            events(Notice(f"{bench.name}: the judge and the rule agree on {agreement} of the answers"))
        run = dataclasses.replace(run, benchmarks=results, mmavg=mmavg(judged_accuracies(results)), scored_by="judge")
        share.wait()
        if share.is_first:
            plan.folder.write_results(run.to_dict())
        judged.append((run, rows))
    return judged
