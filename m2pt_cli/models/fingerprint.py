"""The fingerprint of a base: identifies the weights an adapter was trained on, whatever dtype they were loaded in."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

from m2pt_cli.models.base_files import base_tensors
from m2pt_cli.models.catalog import read_geometry

SAMPLES = 64


def base_fingerprint(folder: Path) -> str:
    """Hash (sha256) geometry, names and shapes of all weights, and 64 evenly spaced values of every 2-D weight.

    The values are the bytes in the files, so the dtype on the device and quantisation at loading do not matter; names
    are transformers' current ones, so the age and the sharding of the checkpoint do not matter either. Only the sampled
    pages are read.

    Raises:
        UnavailableError: the folder is not a base, or its weights are damaged or do not match its config.
    """
    geometry = read_geometry(folder)
    digest = hashlib.sha256(json.dumps(geometry.identity(), sort_keys=True).encode())
    with ExitStack() as stack:
        opened: dict[Path, BinaryIO] = {}
        for name, tensor in sorted(base_tensors(folder, geometry).items()):
            digest.update(f"\n{name}{list(tensor.shape)}".encode())
            if len(tensor.shape) != 2:
                continue
            if tensor.file not in opened:
                opened[tensor.file] = stack.enter_context(_open_for_samples(tensor.file))
            stream = opened[tensor.file]
            for sample in range(SAMPLES):
                stream.seek(tensor.start + tensor.width * (sample * (tensor.size - 1) // (SAMPLES - 1)))
                digest.update(stream.read(tensor.width))
    return digest.hexdigest()


def _open_for_samples(file: Path) -> BinaryIO:
    stream = file.open("rb", buffering=0)
    if hasattr(os, "posix_fadvise"):
        # Without this the kernel reads ahead at every sample: gigabytes for a 7B base.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return cast(BinaryIO, stream)
