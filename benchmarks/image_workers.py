"""Decoding and preparing images with threads against worker processes, in one run.

    python benchmarks/image_workers.py

Both turn the same JPEGs into the same tensors with the engine's `ImagePreparer`. The processes are those of torch's
DataLoader, which passes tensors through shared memory; timing begins after they have started. Wall seconds are the time
a model waits; CPU seconds of all threads and processes are what is taken from a model that shares the cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from answering import make_images, make_processor
from geometries import GEOMETRIES
from measure import ratio, setting, table, write
from torch.utils.data import DataLoader, Dataset

from m2pt_cli.data.collate import ImagePreparer
from m2pt_cli.data.sample import BytesImage


class Images(Dataset):
    """A data set of prepared images, each with the CPU seconds that its worker spent on it."""

    def __init__(self, preparer: ImagePreparer, images: Sequence[BytesImage]) -> None:
        self.preparer = preparer
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        start = time.thread_time()
        pixels = self.preparer.prepare([self.images[index]])["pixel_values"]
        return pixels, time.thread_time() - start


def by_threads(images: Images, workers: int) -> Iterator[tuple[torch.Tensor, float]]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(images.__getitem__, range(len(images)))


def take(prepared: Any) -> tuple[float, float, float]:
    """Return the wall seconds, the CPU seconds of all workers and the sum of the first pixel of every image."""
    wall, own = time.perf_counter(), time.thread_time()
    total, worked = 0.0, 0.0
    for pixels, seconds in prepared:
        total += float(pixels[0, 0, 0, 0])
        worked += seconds
    return time.perf_counter() - wall, time.thread_time() - own + worked, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--workers", type=int, action="append", help="default 1 and the number of cores")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    geometry = GEOMETRIES["answering"]
    processor = make_processor(geometry.text.vocab_size, geometry.vision.image_size, geometry.vision.patch_size)
    images = Images(ImagePreparer(processor, fit="crop"), make_images(arguments.images))
    rows, results = [], {}
    for workers in arguments.workers or sorted({1, os.cpu_count() or 1}):
        loader = DataLoader(images, batch_size=None, num_workers=workers, persistent_workers=True)
        seconds: dict[str, list[tuple[float, float, float]]] = {"threads": [], "processes": []}
        for number in range(1 + arguments.rounds):
            for name in seconds:
                taken = take(by_threads(images, workers) if name == "threads" else loader)
                if number:
                    seconds[name].append(taken)
        assert len({taken[2] for passes in seconds.values() for taken in passes}) == 1
        for kind, place in (("wall", 0), ("cpu", 1)):
            each = {name: [taken[place] for taken in passes] for name, passes in seconds.items()}
            over = ratio(each["processes"], each["threads"])
            results[f"{workers}, {kind}"] = {"seconds": each, "processes_over_threads": over}
            median = {name: 1000 * sorted(values)[len(values) // 2] / len(images) for name, values in each.items()}
            cells = [f"{median['threads']:.2f}", f"{median['processes']:.2f}"]
            spread = f"{over['min']:.2f}-{over['max']:.2f}"
            rows.append([f"{workers} worker(s), {kind}", *cells, f"{over['median']:.2f}", spread])
    where = setting(torch.device("cpu"))
    columns = ["ms per image", "threads", "processes", "processes / threads", "spread"]
    print(table(f"{arguments.images} JPEGs of 640 x 480, {where['device']}", columns, rows))
    if not arguments.no_json:
        print(f"written to {write('image_workers-cpu', {'setting': where, 'images': len(images), 'workers': results})}")


if __name__ == "__main__":
    main()
