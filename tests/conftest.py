"""Every test runs offline, on the CPU, on one thread, with no network, no colour and no user configuration.

Tests in ``tests/cuda`` name another device where there is one.
"""

from __future__ import annotations

import os

# Set before torch and huggingface_hub are imported: both read their environment once, at import.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_OFFLINE": "1",
        "NO_COLOR": "1",
        "M2PT_DEVICE": "cpu",  # the expected values were computed on a CPU
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
)
for name in ("M2PT_BASE", "M2PT_ADAPTER", "M2PT_DEBUG", "HF_TOKEN", "HF_ENDPOINT"):
    os.environ.pop(name, None)
