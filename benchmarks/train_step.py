"""A training step of M²PT against other methods, in one run: time, ratios, utilisation, peak memory.

    python benchmarks/train_step.py                          # geometry small, CPU, one thread
    python benchmarks/train_step.py --geometry llava-v1-7b --device cuda

Variants, all with the same frozen weights and the same batch, timed in turn in every round:
  m2pt                  20 visual and 10 textual prompts, interaction layer
  m2pt, explicit mask   the same with an explicit mask in the language model
  m2pt, plain norms     the same with transformers' own norms, where the device has a fused kernel for them
  m2pt, concatenation   the same prompts as tokens of the sequence (see `concatenation`)
  lora, usual recipe    r=16 on all linear layers of the language model, the projector trained, as PEFT sets it up:
                        weights in fp32, autocast if the base is in half precision; logits and loss at every position
  lora, narrow weights  the same with weights in the dtype of the base and no autocast
  lora, our loss        the usual recipe with logits at supervised positions only
  lora, m2pt train      as `m2pt train --method lora` does: our loss, fused norms, only weights in fp32
  full, usual recipe    language model, projector and head in the dtype of the base; skipped if it does not fit
  forward alone         the base without adapter and gradients, with our logits

No gradient checkpointing; AdamW; memory is counted above the frozen weights. Weights are random, which does not change
the cost of a step.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from concatenation import ConcatenatedPrompts
from flops import StepFlops, step_flops
from geometries import GEOMETRIES, TEXT_TOKENS, batch_of, build
from measure import (
    DOES_NOT_FIT,
    in_child,
    interleaved,
    matmul_ceiling,
    peak_bytes,
    ratio,
    reason,
    release,
    seconds_left,
    setting,
    table,
    write,
)
from peft import get_peft_model
from transformers import LlavaForConditionalGeneration

from m2pt_cli.method import preset
from m2pt_cli.training import norms
from m2pt_cli.training.loss import supervised_loss
from m2pt_cli.training.norms import fuse_norms
from m2pt_cli.training.setup import leave_inputs_narrow

FULL = "full, usual recipe"
NARROW, OURS = "lora, narrow weights", "lora, m2pt train"
SUPERVISED = 5
VISUAL, TEXTUAL = 20, 10
VARIANTS = (
    "m2pt",
    "m2pt, explicit mask",
    "m2pt, plain norms",
    "m2pt, concatenation",
    "lora, usual recipe",
    NARROW,
    "lora, our loss",
    OURS,
    FULL,
    "forward alone",
)
Step = Callable[[], object]


def make_batch(model: LlavaForConditionalGeneration, rows: int) -> dict[str, torch.Tensor]:
    """Return ids with image tokens, text whose last tokens are supervised, and a mask without padding."""
    device, vocabulary = model.device, model.config.text_config.vocab_size
    image = model.config.vision_config.image_size
    patches = (image // model.config.vision_config.patch_size) ** 2
    generator = torch.Generator(device).manual_seed(1)
    words = torch.randint(3, vocabulary - 1, (rows, TEXT_TOKENS), device=device, generator=generator)
    pictures = torch.full((rows, patches), model.config.image_token_id, device=device)
    ids = torch.cat([words[:, :20], pictures, words[:, 20:]], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    pixels = torch.randn(rows, 3, image, image, device=device, generator=generator).to(model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def shared_copy(model: torch.nn.Module) -> Any:
    """Copy the modules but share the frozen weights."""
    return copy.deepcopy(model, {id(p): p for p in [*model.parameters(), *model.buffers()]})


def adapted(name: str, base: LlavaForConditionalGeneration) -> Any:
    """Return the model of a variant, in training mode."""
    if name == "m2pt, concatenation":
        model: Any = ConcatenatedPrompts(shared_copy(base), visual=VISUAL, textual=TEXTUAL).train()
        fuse_norms(model)  # so that only the concatenation differs
        return model
    method = name.split(",")[0]
    if method == "full":
        model = copy.deepcopy(base)
        for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
            part.requires_grad_(True)
        return model.train()
    prompts = {"num_visual_prompts": VISUAL, "num_textual_prompts": TEXTUAL}
    config = preset(method, base.config, **(prompts if method == "m2pt" else {"lora_rank": 16}))
    model = get_peft_model(shared_copy(base), config, autocast_adapter_dtype=name != NARROW).train()
    if name == OURS:
        leave_inputs_narrow(model)
    if name == OURS or (method == "m2pt" and name != "m2pt, plain norms"):
        fuse_norms(model)
    return model


def step_of(name: str, base: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> Step:
    """Return a function that runs one optimiser step of a variant (or only the forward pass)."""
    if name == "forward alone":
        bare = shared_copy(base)

        def forward() -> object:
            with torch.no_grad():
                return supervised_loss(bare, batch)

        return forward
    if name == "m2pt, explicit mask":  # the mask hides the same positions as the causal kernel
        length = batch["input_ids"].shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=base.device).tril()
        batch = {**batch, "attention_mask": causal.expand(batch["input_ids"].shape[0], 1, -1, -1)}
    model = adapted(name, base)
    is_cast = name.startswith("lora") and name != NARROW and base.dtype != torch.float32
    narrow = torch.autocast(base.device.type, base.dtype) if is_cast else nullcontext()
    all_logits = name.endswith("usual recipe") or name == NARROW
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> object:
        with narrow:
            loss = model(**batch, use_cache=False).loss if all_logits else supervised_loss(model, batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss

    return step


def needed(name: str, flops: StepFlops) -> float:
    """Return the model FLOPs of a variant's step."""
    if name == "forward alone":
        return flops.forward
    total = flops.forward + flops.input_gradients
    if name.startswith("m2pt"):
        total += flops.vision_gradients
    return total + (flops.weight_gradients if name.startswith("full") else 0)


def prepare(
    names: list[str], base: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor], left_out: dict[str, str]
) -> tuple[dict[str, Step], dict[str, int]]:
    """Build the steps of the variants; on CUDA also measure the peak memory of each above the frozen weights.

    Variants that fail or do not fit are put into ``left_out`` with the reason.
    """
    steps: dict[str, Step] = {}
    peaks: dict[str, int] = {}
    for name in names:
        try:
            if base.device.type == "cuda":
                before = torch.cuda.memory_allocated(base.device)
                steps[name] = step_of(name, base, batch)
                # Full fine-tuning holds a copy of the weights.
                held = torch.cuda.memory_allocated(base.device) - before
                peaks[name] = held + peak_bytes(lambda name=name: steps[name], base.device)
            else:
                steps[name] = step_of(name, base, batch)
        except Exception as error:
            left_out[name] = reason(error)
        if name in left_out:  # only here, after the exception and its frames have released the tensors
            steps.pop(name, None)
            release()
            print(f"{name}: {left_out[name]}", file=sys.stderr)
    return steps, peaks


def time_full(
    steps: dict[str, Step],
    peaks: dict[str, int],
    base: LlavaForConditionalGeneration,
    batch: dict[str, torch.Tensor],
    rounds: int,
    left_out: dict[str, str],
) -> dict[str, list[float]]:
    """Time full fine-tuning against M²PT in separate rounds; return nothing if it does not fit.

    It fills the GPU: in shared rounds the other variants would have to free and allocate memory again and again.
    """
    if seconds_left() <= 0:
        left_out[FULL] = "no time was left"
        return {}
    found, peak = prepare([FULL], base, batch, left_out)
    peaks |= peak
    if not found:
        return {}
    pair = {"m2pt": steps["m2pt"], **found}
    seconds = interleaved(pair, rounds=rounds, warmup=1, device=base.device, left_out=left_out)
    return seconds if seconds.keys() == pair.keys() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA")
    parser.add_argument("--batch", type=int, help="rows; default 16 at 7B, else 4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--skip", action="append", default=[], help="a row to leave out, such as 'full, usual recipe'")
    parser.add_argument("--no-json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    is_cuda = device.type == "cuda"
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if is_cuda else "float32"))
    geometry, batch_size = GEOMETRIES[arguments.geometry], arguments.batch or batch_of(arguments.geometry)
    names = [name for name in VARIANTS if name not in arguments.skip]
    same = {  # as another row, here
        "m2pt, plain norms": device.type not in norms.FUSED_DEVICES,
        NARROW: dtype == torch.float32,
        OURS: dtype == torch.float32,
    }
    names = [name for name in names if not same.get(name)]

    left_out: dict[str, str] = {}  # and why
    peaks: dict[str, int] = {}
    if not is_cuda:  # memory first, each row in a child of a process that has run nothing yet

        def prepared(name: str) -> Step:
            base = build(geometry, device, dtype)
            return step_of(name, base, make_batch(base, batch_size))

        found = {name: in_child(lambda name=name: peak_bytes(lambda: prepared(name), device)) for name in names}
        peaks = {name: peak for name, peak in found.items() if peak is not None}
    base = build(geometry, device, dtype)
    batch = make_batch(base, batch_size)
    ceiling = [matmul_ceiling(device, dtype)]
    apart = is_cuda and FULL in names
    steps, more = prepare([name for name in names if not (apart and name == FULL)], base, batch, left_out)
    peaks |= more
    seconds = interleaved(steps, rounds=arguments.rounds, warmup=arguments.warmup, device=device, left_out=left_out)
    with suppress(RuntimeError):  # after some errors every CUDA call fails; still print what was measured
        ceiling.append(matmul_ceiling(device, dtype))
    ratios = {name: ratio(seconds["m2pt"], seconds[name]) for name in seconds} if "m2pt" in seconds else {}
    if apart and ratios and (pair := time_full(steps, peaks, base, batch, max(2, arguments.rounds // 2), left_out)):
        seconds[FULL] = pair[FULL]
        ratios[FULL] = ratio(pair["m2pt"], pair[FULL])

    flops = step_flops(
        geometry, rows=batch_size, text_tokens=TEXT_TOKENS, supervised=SUPERVISED, visual_prompts=VISUAL,
        textual_prompts=TEXTUAL,
    )  # fmt: skip
    used = {name: needed(name, flops) / sorted(s)[len(s) // 2] / max(ceiling) for name, s in seconds.items()}
    rows = [
        row_of(name, seconds[name], ratios.get(name), used[name], peaks)
        if name in seconds
        else [name, left_out.get(name, "not run"), *[""] * 6]
        for name in names
    ]
    where = setting(device)
    kind = "wall" if is_cuda else "CPU"
    title = (
        f"training step, {arguments.geometry}, {batch_size} rows, {where['device']}, {dtype}, {kind} time; a matrix "
        f"product reaches {max(ceiling) / 1e12:.3g} TFLOP/s"
    )
    columns = ["step", "median", "spread", "m2pt / it", "spread", "utilisation", "peak memory", "m2pt / it"]
    print(table(title, columns, rows))
    if not arguments.no_json:
        content = {
            "setting": where, "geometry": arguments.geometry, "batch": batch_size, "dtype": str(dtype).split(".")[1],
            "matmul_flops_per_second": ceiling, "model_flops": {name: needed(name, flops) for name in names},
            "seconds": seconds, "m2pt_over": ratios, "utilisation": used, "peak_bytes": peaks,
            "left_out": left_out,
        }  # fmt: skip
        print(f"written to {write(f'train_step-{arguments.geometry}-{device.type}', content)}")
    if "m2pt" not in seconds or any(why != DOES_NOT_FIT for why in left_out.values()):
        sys.exit("a row is missing: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()))


def row_of(
    name: str, seconds: list[float], over: dict[str, float] | None, used: float, peaks: dict[str, int]
) -> list[str]:
    """A row of the table."""
    peak, own = peaks.get(name), peaks.get("m2pt")
    ordered = sorted(seconds)
    return [
        name,
        f"{1e3 * ordered[len(ordered) // 2]:.0f} ms",
        f"{1e3 * ordered[0]:.0f}-{1e3 * ordered[-1]:.0f}",
        f"{over['median']:.2f}" if over else "?",
        f"{over['min']:.2f}-{over['max']:.2f}" if over else "?",
        f"{used:.2f}",
        f"{peak / 2**20:,.0f} MiB" if peak else "?",
        f"{own / peak:.2f}" if own and peak else "?",
    ]


if __name__ == "__main__":
    main()
