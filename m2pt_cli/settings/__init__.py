"""Frozen settings of each command, from YAML and flags, with every fault reported at once.

A value of None means "not said": `TrainSettings.resolve` fills it from the defaults of the base (the catalogue's, see
``m2pt_cli.bases.catalog``). This package imports no torch, so that a mistake in a flag costs no waiting.
"""

from m2pt_cli.settings.asking import EvalSettings, InferSettings
from m2pt_cli.settings.attention import AttnMapSettings
from m2pt_cli.settings.choices import (
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
    closest,
    flag,
    raise_faults,
)
from m2pt_cli.settings.common import Settings
from m2pt_cli.settings.training import TrainSettings
from m2pt_cli.settings.values import convert, read_yaml

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
