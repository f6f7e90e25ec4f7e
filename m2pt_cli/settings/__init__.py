"""Frozen settings of each command, read from YAML and flags; all errors are reported together.

None means that the user did not set the value: `TrainSettings.resolve` fills it from the defaults of the base (see
``m2pt_cli.models.catalog``). This package imports no torch, so that an invalid flag is reported without delay.
"""

from m2pt_cli.settings.base import (
    ATTENTION_PARTS,
    DTYPES,
    IMAGE_FITS,
    INITS,
    INTERACTIONS,
    METHODS,
    PROTOCOLS,
    REPORTERS,
    TEMPLATES,
    VISUAL_TOKENS,
    WORDINGS,
    Settings,
    closest,
    convert,
    flag,
    raise_faults,
    read_yaml,
)
from m2pt_cli.settings.inference import AttnMapSettings, EvalSettings, InferSettings
from m2pt_cli.settings.train import TrainSettings

__all__ = [
    "ATTENTION_PARTS",
    "DTYPES",
    "IMAGE_FITS",
    "INITS",
    "INTERACTIONS",
    "METHODS",
    "PROTOCOLS",
    "REPORTERS",
    "TEMPLATES",
    "VISUAL_TOKENS",
    "WORDINGS",
    "AttnMapSettings",
    "EvalSettings",
    "InferSettings",
    "Settings",
    "TrainSettings",
    "closest",
    "convert",
    "flag",
    "raise_faults",
    "read_yaml",
]
