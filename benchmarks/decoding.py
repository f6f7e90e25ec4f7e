"""Tokens per second of `generate`, without an adapter and with one, in one run.

    python benchmarks/decoding.py                                       # geometry small, CPU, one thread
    python benchmarks/decoding.py --device cuda --geometry llava-1.5-7b

Timing starts at the first new token and ends at the last, so it excludes the prefill of image and question. The base
has no wrappers; LoRA is not merged into the weights. Weights are random, which does not change the cost of a token.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from geometries import GEOMETRIES, build
from measure import clock, in_rounds, ratio, setting, synchronise, table, write
from peft import get_peft_model
from train_step import TEXTUAL, VISUAL, make_batch, shared_copy
from transformers import StoppingCriteria, StoppingCriteriaList

from m2pt_cli.method import preset

VARIANTS = ("bare base", "m2pt", "lora")


class Stopwatch(StoppingCriteria):
    """Records the time of the first new token and of the last; never stops the generation."""

    def __init__(self, new_tokens: int, device: torch.device) -> None:
        self.new_tokens = new_tokens
        self.device = device
        self.seen = 0
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen += 1
        if self.seen in (1, self.new_tokens):
            synchronise(self.device)
            self.times.append(clock(self.device))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def seconds_per_step(model: Any, batch: dict[str, torch.Tensor], new_tokens: int) -> float:
    """Return the mean seconds of a greedy decoding step of the batch, without the first."""
    watch = Stopwatch(new_tokens, batch["input_ids"].device)
    with torch.inference_mode():
        model.generate(
            **batch, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([watch]),
        )  # fmt: skip
    first, last = watch.times
    return (last - first) / (new_tokens - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA")
    parser.add_argument("--batch", type=int, action="append", help="rows; default 1 and 16")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--no-json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    base = build(GEOMETRIES[arguments.geometry], device, dtype)
    models: dict[str, Any] = {"bare base": shared_copy(base)}
    options: dict[str, dict[str, int]] = {
        "m2pt": {"num_visual_prompts": VISUAL, "num_textual_prompts": TEXTUAL},
        "lora": {"lora_rank": 16},
    }
    for name, values in options.items():
        config = preset(name, base.config, **values)
        models[name] = get_peft_model(shared_copy(base), config, autocast_adapter_dtype=name == "m2pt").eval()

    rows, results = [], {}
    batches = arguments.batch or (1, 16)
    for batch_size in batches:
        batch = make_batch(base, batch_size)
        del batch["labels"]
        runs: dict[str, Callable[[], float]] = {
            name: lambda model=model, batch=batch: seconds_per_step(model, batch, arguments.new_tokens)
            for name, model in models.items()
        }
        why: dict[str, str] = {}
        share = 1 / (len(batches) - len(results))  # of the time that is left
        seconds = in_rounds(runs, rounds=arguments.rounds, warmup=arguments.warmup, left_out=why, share=share)
        over = {name: ratio(values, seconds["bare base"]) for name, values in seconds.items() if "bare base" in seconds}
        speeds = {name: batch_size / sorted(values)[len(values) // 2] for name, values in seconds.items()}
        results[batch_size] = {
            "seconds_per_step": seconds, "tokens_per_second": speeds, "over_bare": over, "left_out": why,
        }  # fmt: skip
        for name in runs:
            row = [why.get(name, "?"), "", ""]
            if name in speeds:
                row = [f"{speeds[name]:.1f}", "?", "?"]
            if name in over:
                row[1:] = f"{over[name]['median']:.3f}", f"{over[name]['min']:.3f}-{over[name]['max']:.3f}"
            rows.append([f"{name}, {batch_size} row(s)", *row])
    where = setting(device)
    title = f"decoding, {arguments.geometry}, {where['device']}, {dtype}, {arguments.new_tokens} new tokens"
    print(table(title, ["model", "tokens/s", "time per token / bare", "spread"], rows))
    if not arguments.no_json:
        content = {
            "setting": where, "geometry": arguments.geometry, "dtype": str(dtype).split(".")[1],
            "new_tokens": arguments.new_tokens, "batch": results,
        }  # fmt: skip
        print(f"written to {write(f'decoding-{arguments.geometry}-{device.type}', content)}")
    if any(result["left_out"] for result in results.values()):
        sys.exit("a row is missing")


if __name__ == "__main__":
    main()
