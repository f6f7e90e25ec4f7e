"""M²PT, multimodal prompt tuning (arXiv 2409.15657), as a PEFT method. Importing this package registers it."""

from __future__ import annotations

from m2pt_cli.method.check import check_prompts
from m2pt_cli.method.checkpoint import AdapterFiles, load_adapter_strictly, read_adapter_config, read_adapter_files
from m2pt_cli.method.config import M2PTConfig, MethodError
from m2pt_cli.method.interaction import train_in_fp32
from m2pt_cli.method.parameters import PARTS, adapter_of, adapter_parameters, part_of, parts_of, select_full
from m2pt_cli.method.presets import preset
from m2pt_cli.method.registration import register
from m2pt_cli.method.tuner import M2PTModel

register(M2PTConfig, M2PTModel)

__all__ = [
    "PARTS",
    "AdapterFiles",
    "M2PTConfig",
    "M2PTModel",
    "MethodError",
    "adapter_of",
    "adapter_parameters",
    "check_prompts",
    "load_adapter_strictly",
    "part_of",
    "parts_of",
    "preset",
    "read_adapter_config",
    "read_adapter_files",
    "select_full",
    "train_in_fp32",
]
