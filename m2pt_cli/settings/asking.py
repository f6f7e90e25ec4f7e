"""Settings of the commands that answer questions: m2pt infer and m2pt eval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m2pt_cli.settings.choices import IMAGE_FITS, PROTOCOLS, TEMPLATES, WORDINGS, repeated
from m2pt_cli.settings.common import Settings


@dataclass(frozen=True, kw_only=True)
class InferSettings(Settings):
    """Settings of ``m2pt infer``."""

    adapter: tuple[str, ...] = ()
    template: str | None = None
    image_fit: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    num_beams: int = 1
    allow_url: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        faults += [f"--adapter {name!r} is given twice" for name in repeated(self.adapter)]
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        self.at_least(faults, 1, "max_new_tokens", "num_beams")
        self.at_least(faults, 0, "temperature")
        if self.temperature > 0 and self.num_beams > 1:
            faults.append("--temperature samples and --num-beams searches: use one of them")
        return faults


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings of ``m2pt eval``."""

    bench: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    predictions: Path | None = None
    source: str | None = None
    images: tuple[Path, ...] = ()
    template: str | None = None
    image_fit: str | None = None
    wording: str = "m2pt-1"
    protocol: str = "official"
    ocr: bool = False
    limit: int | None = None
    shuffle_images: bool = False
    max_new_tokens: int | None = None
    batch_tokens: int | None = None
    allow_url: bool = False
    judge: str | None = None
    output_dir: Path | None = None
    overwrite: bool = False

    def faults(self) -> list[str]:
        faults = super().faults()
        if not self.bench:
            faults.append("--bench is missing: name a benchmark, such as --bench demo")
        self.one_of(faults, "template", TEMPLATES)
        self.one_of(faults, "image_fit", IMAGE_FITS)
        self.one_of(faults, "wording", WORDINGS)
        self.one_of(faults, "protocol", PROTOCOLS)
        self.at_least(faults, 1, "limit", "max_new_tokens", "batch_tokens")
        if self.predictions is not None and len(self.bench) > 1:
            faults.append("--predictions scores one benchmark: give --bench once")
        faults += [f"--adapter {name!r} is given twice" for name in repeated(self.adapter)]
        return faults
