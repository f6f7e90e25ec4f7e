"""Predicts the time of a training step of each variant of `train_step` on a GPU that is not available.

    python benchmarks/roofline.py                                     # LLaVA v1 at 7B, 16 rows, a few seconds a row
    python benchmarks/roofline.py --geometry llava-1.5-7b --bandwidth 2.8

Every operation that torch dispatches in a step is listed with the bytes it reads and writes and the FLOPs of its matrix
products. Its time is the longest of: bytes / bandwidth, FLOPs / rate, a kernel launch. The prediction is their sum:
nothing overlaps, nothing waits for Python, the optimiser is not counted. Steps are run with one and with two decoder
layers and extrapolated; only shapes are computed, not values.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from geometries import GEOMETRIES, batch_of, build
from measure import table
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from train_step import FULL, VARIANTS, make_batch, step_of

from m2pt_cli.families.geometry import Geometry
from m2pt_cli.training import norms

# Views of a tensor, and allocations without initialisation.
_FREE = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "split_with_sizes", "unbind", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "unfold", "set_",
}  # fmt: skip
_KERNEL_START = 3e-6


@dataclass(frozen=True)
class Card:
    """Bytes per second, and FLOP/s of matrix products in half precision, in fp32 and in the two attention kernels.

    The efficient kernel is the one that takes a mask.
    """

    bandwidth: float
    rate: float
    rate_fp32: float = 50e12
    flash: float = 350e12
    efficient: float = 130e12


class Roofline(TorchDispatchMode):
    """Sums what each operation needs, and skips the computation on floating-point tensors.

    Attributes:
        seconds, operations, bytes, kernels: by name of the operation.
    """

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.seconds: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _FREE:
            return func(*args, **kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        floating = bool(inputs) and all(x.is_floating_point() for x in inputs)
        out = _shapes_alone(func, args, kwargs) if floating else func(*args, **kwargs)
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if name == "mm":
            self.add("matrices", inputs, outputs, operations=2 * inputs[0].numel() * inputs[1].shape[1])
        elif name == "addmm":
            self.add("matrices", inputs, outputs, operations=2 * inputs[1].numel() * inputs[2].shape[1])
        elif name == "bmm":
            self.add("matrices", inputs, outputs, operations=2 * inputs[0].numel() * inputs[1].shape[2])
        elif name.startswith("_scaled_dot_product_flash_attention_for_cpu"):
            backward = name.endswith("backward")
            query, key = inputs[1:3] if backward else inputs[:2]
            mask = kwargs.get("attn_mask") is not None
            square = query.numel() * key.shape[-2] * (10 if backward else 4)
            is_causal = args[7 if backward else 4] if len(args) > (7 if backward else 4) else kwargs.get("is_causal")
            rate = self.card.efficient if mask else self.card.flash * (0.8 if backward else 1)
            self.add("attention", inputs, outputs, operations=square / (2 if is_causal else 1), rate=rate)
        else:
            self.add(name, inputs, outputs)
        return out

    def add(
        self, name: str, inputs: list[Tensor], outputs: list[Tensor], operations: float = 0, rate: float | None = None
    ) -> None:
        """Count one kernel."""
        moved = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
        is_wide = bool(outputs) and outputs[0].dtype == torch.float32
        rate = rate or (self.card.rate_fp32 if is_wide else self.card.rate)
        self.seconds[name] += max(moved / self.card.bandwidth, operations / rate, _KERNEL_START)
        self.operations[name] += operations
        self.bytes[name] += moved
        self.kernels[name] += 1


def _bytes(tensor: Tensor) -> int:
    """Bytes of memory; an expanded tensor counts once, because it is read from a cache."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def _shapes_alone(func: Any, args: Any, kwargs: Any) -> Any:
    """Return uninitialised outputs of an operation without computing it; untouched memory costs nothing."""
    if func._schema.is_mutable:
        return args[0]

    def meta(x: Any) -> Any:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x

    def real(x: Any) -> Any:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) if isinstance(x, Tensor) else x

    kwargs = {key: value for key, value in kwargs.items() if key != "device"}
    return tree_map(real, func(*tree_map(meta, args), **tree_map(meta, kwargs)))


class _FusedNorm(torch.autograd.Function):
    """Stands in for CUDA's fused norm: one pass over the input, and one over input and gradient in the backward."""

    @staticmethod
    def forward(ctx: Any, mode: Roofline, x: Tensor) -> Tensor:
        ctx.mode = mode
        ctx.save_for_backward(x)
        with _disable_current_modes():
            out = torch.empty_like(x)
        mode.add("rms_norm", [x], [out])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with _disable_current_modes():
            out = torch.empty_like(gradients[0])
        ctx.mode.add("rms_norm", [ctx.saved_tensors[0], gradients[0]], [out])
        return None, out


def needs(name: str, geometry: Geometry, rows: int, card: Card) -> Roofline:
    """Sum what a step of the variant ``name`` needs."""
    found = []
    for layers in (1, 2):
        text = replace(geometry.text, num_layers=layers)
        base = build(replace(geometry, text=text), torch.device("cpu"), torch.bfloat16)
        step = step_of(name, base, make_batch(base, rows))
        mode = Roofline(card)
        fused = mock.patch.object(functional, "rms_norm", lambda x, *_, mode=mode: _FusedNorm.apply(mode, x))
        with fused, mock.patch.object(torch.optim.AdamW, "step"), mode:
            step()
        found.append(mode)
    whole = Roofline(card)
    for key in ("seconds", "operations", "bytes", "kernels"):
        one, two = (getattr(mode, key) for mode in found)
        # Every further layer costs as much as the second one.
        more = {op: one[op] + (geometry.text.num_layers - 1) * (two[op] - one[op]) for op in one | two}
        setattr(whole, key, Counter(more))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llava-v1-7b")
    parser.add_argument("--bandwidth", type=float, default=4.0, help="TB/s; what an H200 does of its 4.8")
    parser.add_argument("--rate", type=float, default=700.0, help="TFLOP/s of a large matrix product in bf16")
    parser.add_argument("--batch", type=int, help="rows; default as in train_step")
    parser.add_argument("--row", action="append", choices=VARIANTS, help="only this row and m2pt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    norms.FUSED_DEVICES = ("cpu",)
    card = Card(arguments.bandwidth * 1e12, arguments.rate * 1e12)
    rows = arguments.batch or batch_of(arguments.geometry)
    chosen = ["m2pt", *(name for name in arguments.row or VARIANTS if name not in ("m2pt", FULL))]
    lines, own = [], 0.0
    for name in chosen:
        found = needs(name, GEOMETRIES[arguments.geometry], rows, card)
        seconds, moved = found.seconds.total(), found.bytes.total()
        own = own or seconds
        parts = ", ".join(f"{operation} {1e3 * value:.0f}" for operation, value in found.seconds.most_common(5))
        kernels = f"{found.kernels.total():,}"
        lines.append([name, f"{1e3 * seconds:.0f} ms", f"{own / seconds:.2f}", f"{moved / 1e9:.0f}", kernels, parts])
    title = (
        f"predicted training step, {arguments.geometry}, {rows} rows, bf16, {arguments.bandwidth:g} TB/s, "
        f"{arguments.rate:g} TFLOP/s"
    )
    print(table(title, ["step", "time", "m2pt / it", "GB moved", "kernels", "of it, in ms"], lines))


if __name__ == "__main__":
    main()
