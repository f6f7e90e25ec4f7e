"""Frozen settings of each command, from YAML and flags, with every fault reported at once.

A value of None means "not said": `TrainSettings.resolve` fills it from the defaults of the base (the catalogue's, see
``m2pt_cli.models.catalog``). This package imports no torch, so that a mistake in a flag costs no waiting.
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
