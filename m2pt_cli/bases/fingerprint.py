"""The fingerprint of a base: which weights an adapter was trained on, whatever type they were loaded in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
from pathlib import Path

from m2pt_cli.bases.catalog import read_geometry
from m2pt_cli.bases.folder import base_tensors

SAMPLES = 64


def base_fingerprint(folder: Path) -> str:
    """sha256 over geometry, names and shapes of all weights, and 64 evenly spaced values of every 2-D weight.

    The values are the bytes of the files, so the type on the device and quantisation at loading do not matter; names
    are transformers' current ones, so neither do the age and the sharding of the checkpoint. Only the sampled pages
    are read.

    Raises:
        UnavailableError: the folder is no base, or its weights are damaged or not those of its config.
    """
    geometry = read_geometry(folder)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(geometry), sort_keys=True).encode())
    maps: dict[Path, mmap.mmap] = {}
    try:
        for name, tensor in sorted(base_tensors(folder, geometry).items()):
            digest.update(f"\n{name}{list(tensor.shape)}".encode())
            if len(tensor.shape) != 2:
                continue
            if tensor.file not in maps:
                with tensor.file.open("rb") as stream:
                    maps[tensor.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            values = maps[tensor.file]
            for sample in range(SAMPLES):
                place = tensor.start + tensor.width * (sample * (tensor.size - 1) // (SAMPLES - 1))
                digest.update(values[place : place + tensor.width])
    finally:
        for opened in maps.values():
            opened.close()
    return digest.hexdigest()
