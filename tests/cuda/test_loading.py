"""A base is loaded straight to the device in its own dtype, one shard at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures.models import IMAGE_TOKEN, PAD, VOCABULARY
from transformers import AutoConfig, LlavaForConditionalGeneration

LAYERS, WIDTH, MLP = 12, 1024, 4096
SHARD = 150_000_000

# In a process of its own, so that nothing but the loading is measured. Python's and CUDA's own memory is there before.
MEASURE = """
import json, sys, threading, torch
from pathlib import Path
from m2pt_cli.models.load import load_base
import transformers.models.llava.modeling_llava, transformers.models.llama.modeling_llama
folder, device, small = sys.argv[1], torch.device(sys.argv[2]), sys.argv[3]
load_base(small, device=str(device), dtype="bfloat16")
torch.ones(8, device=device).bfloat16() @ torch.ones(8, device=device).bfloat16()
lines = lambda: dict(l.split(":") for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("Rss"))
own = lambda: int(lines()["RssAnon"].split()[0]) * 1024
before, peak, done = own(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, own())
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
if device.type == "cuda":
    torch.cuda.reset_peak_memory_stats()
loaded = load_base(folder, device=str(device), dtype="bfloat16")
done.set(); watcher.join()
print(json.dumps({
    "host": max(peak, own()) - before,
    "bytes": sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
    "dtypes": sorted({str(p.dtype) for p in loaded.model.parameters()}),
    "devices": sorted({p.device.type for p in loaded.model.parameters()}),
    "device_peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
}))
"""


@pytest.fixture(scope="module")
def large_base(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A base of 0.4 GB in bf16, in shards of at most 0.15 GB, with the tiny base's processor."""
    folder = tmp_path_factory.mktemp("bases") / "large"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = AutoConfig.from_pretrained(tiny_base)
    text = {
        "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
        "num_key_value_heads": 8, "head_dim": WIDTH // 8, "vocab_size": VOCABULARY, "pad_token_id": PAD,
    }  # fmt: skip
    for name, value in text.items():
        setattr(config.text_config, name, value)
    assert config.image_token_index == IMAGE_TOKEN
    model = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARD)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
def test_host_memory_is_that_of_a_shard(large_base: Path, tiny_base: Path, device: torch.device) -> None:
    largest = max(file.stat().st_size for file in large_base.glob("*.safetensors"))
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large_base), str(device), str(tiny_base)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["dtypes"] == ["torch.bfloat16"] and found["devices"] == [device.type]
    assert found["bytes"] > 3.5e8
    # On a CPU the weights themselves are host memory.
    rest = found["bytes"] if device.type == "cpu" else 0
    assert found["host"] <= rest + 1.2 * largest, found
    if found["device_peak"] is not None:
        assert found["device_peak"] <= 1.1 * found["bytes"] + 32e6, found
