"""A training step of M²PT beside its peers, in one run: time, ratios, peak memory above the frozen weights.

    python benchmarks/train_step.py                          # geometry small, CPU, one thread
    python benchmarks/train_step.py --geometry llava-v1-7b --device cuda --dtype bfloat16

Rows: M²PT; LoRA r=16 on all linears of the LLM + projector in the usual recipe (logits and loss at every position); the
same LoRA with our loss (logits at supervised positions alone); full fine-tuning of LLM + projector in the usual recipe;
a forward pass alone of the bare base, with our logits. Weights are random: a step's cost does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from geometries import GEOMETRIES, build
from measure import in_child, interleaved, peak_bytes, ratio, setting, table, write
from peft import get_peft_model
from transformers import LlavaForConditionalGeneration

from m2pt_cli.method import preset
from m2pt_cli.training.loss import supervised_loss

SUPERVISED = 5
VARIANTS = ("m2pt", "lora, usual recipe", "lora, our loss", "full, usual recipe", "forward alone")


def make_batch(model: LlavaForConditionalGeneration, geometry: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Image tokens, then text of which the last tokens are supervised."""
    device, vocabulary = model.device, model.config.text_config.vocab_size
    image = model.config.vision_config.image_size
    patches = (image // model.config.vision_config.patch_size) ** 2
    rows, text = geometry["batch"], geometry["text_tokens"]
    generator = torch.Generator(device).manual_seed(1)
    words = torch.randint(3, vocabulary - 1, (rows, text), device=device, generator=generator)
    pictures = torch.full((rows, patches), model.config.image_token_id, device=device)
    ids = torch.cat([words[:, :20], pictures, words[:, 20:]], 1)
    labels = torch.full_like(ids, -100)
    labels[:, -SUPERVISED:] = ids[:, -SUPERVISED:]
    pixels = torch.randn(rows, 3, image, image, device=device, dtype=model.dtype, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def shared_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the modules over the same frozen weights."""
    return copy.deepcopy(model, {id(p): p for p in [*model.parameters(), *model.buffers()]})


def step_of(name: str, base: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """One optimiser step of a variant (or the forward alone), ready to be called again and again."""
    if name == "forward alone":
        model = shared_copy(base)

        def forward() -> object:
            with torch.no_grad():
                return supervised_loss(model, batch)

        return forward
    method = name.split(",")[0]
    if method == "full":
        model = copy.deepcopy(base)
        model.model.language_model.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(True)
        model.lm_head.requires_grad_(True)
    else:
        options = {"num_visual_prompts": 20, "num_textual_prompts": 10} if method == "m2pt" else {"lora_rank": 16}
        model = get_peft_model(shared_copy(base), preset(method, base.config, **options))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> object:
        loss = model(**batch).loss if name.endswith("usual recipe") else supervised_loss(model, batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--skip", action="append", default=[], help="a row to leave out, such as 'full, usual recipe'")
    parser.add_argument("--no-json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    geometry = GEOMETRIES[arguments.geometry]
    names = [name for name in VARIANTS if name not in arguments.skip]

    def prepared(name: str) -> Callable[[], object]:
        base = build(geometry, device, dtype)
        return step_of(name, base, make_batch(base, geometry))

    # Memory first: on a CPU each row in a child of a process that has run nothing yet.
    measure = (lambda work: work()) if device.type == "cuda" else in_child
    peaks = {name: measure(lambda name=name: peak_bytes(lambda: prepared(name), device)) for name in names}

    base = build(geometry, device, dtype)
    batch = make_batch(base, geometry)
    steps = {name: step_of(name, base, batch) for name in names}
    seconds = interleaved(steps, rounds=arguments.rounds, warmup=arguments.warmup, device=device)

    rows = []
    ratios = {name: ratio(seconds["m2pt"], seconds[name]) for name in names}
    for name in names:
        ordered = sorted(seconds[name])
        rows.append(
            [
                name,
                f"{1e3 * ordered[len(ordered) // 2]:.0f} ms",
                f"{1e3 * ordered[0]:.0f}-{1e3 * ordered[-1]:.0f}",
                f"{ratios[name]['median']:.2f}",
                f"{ratios[name]['min']:.2f}-{ratios[name]['max']:.2f}",
                "?" if peaks[name] is None else f"{peaks[name] / 2**20:.0f} MiB",
                "?" if not peaks[name] or not peaks["m2pt"] else f"{peaks['m2pt'] / peaks[name]:.2f}",
            ]
        )
    where = setting(device)
    kind = "wall" if device.type == "cuda" else "CPU"
    title = f"training step, {arguments.geometry}, {where['device']}, {arguments.dtype}, {kind} time"
    print(table(title, ["step", "median", "spread", "m2pt / it", "spread", "peak memory", "m2pt / it"], rows))
    if not arguments.no_json:
        name = f"train_step-{arguments.geometry}-{device.type}"
        content = {"setting": where, "geometry": arguments.geometry, "dtype": arguments.dtype, "seconds": seconds,
                   "m2pt_over": ratios, "peak_bytes": peaks}  # fmt: skip
        print(f"written to {write(name, content)}")


if __name__ == "__main__":
    main()
