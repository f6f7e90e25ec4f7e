"""One table of the benchmark results on a device, with the project's targets.

    python benchmarks/summary.py --device cuda

Reads the JSON files of the benchmarks; a missing figure is shown as not measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from measure import DOES_NOT_FIT, RESULTS, table

MME_SECONDS = 60.0


@dataclass(frozen=True)
class Figure:
    """One figure: where it is in a result file, its target, and its format; ``of`` is the variant it belongs to."""

    name: str
    file: str
    read: Callable[[Any], float]
    target: float | None
    least: bool = False
    unit: str = ""
    of: str | None = None

    def row(self, device: str) -> list[str]:
        try:
            content = json.loads((RESULTS / f"{self.file}-{device}.json").read_text())
        except OSError:
            return [self.name, "not measured", "", "", ""]
        try:
            value = self.read(content)
        except KeyError:
            why = content.get("left_out", {}).get(self.of)
            return [self.name, why if why == DOES_NOT_FIT else "not measured", "", "", ""]
        setting = content["setting"]
        where = f"{setting['device']}, torch {setting['torch']}, transformers {setting['transformers']}"
        where += f", commit {setting['commit']}"
        if self.target is None:
            return [self.name, f"{value:.4g}{self.unit}", "", "", where]
        is_met = value >= self.target if self.least else value <= self.target
        sign = ">=" if self.least else "<="
        verdict = "met" if is_met else "missed"
        return [self.name, f"{value:.4g}{self.unit}", f"{sign} {self.target:g}{self.unit}", verdict, where]


def figures(geometries: list[str], answering: str, decoding: str, rows_decoded: tuple[str, ...]) -> list[Figure]:
    """Return all figures: training steps at ``geometries``, answering and decoding at one geometry each."""
    found = []
    for geometry in geometries:
        file = f"train_step-{geometry}"
        over: list[tuple[str, str, float | None]] = [
            ("usual LoRA step", "lora, usual recipe", 0.70),
            ("LoRA step, narrow weights", "lora, narrow weights", None),
            ("LoRA step with our loss", "lora, our loss", None),
            ("LoRA step of m2pt train", "lora, m2pt train", None),
            ("full fine-tuning step", "full, usual recipe", None),
            ("concatenation step", "m2pt, concatenation", None),
            ("step with explicit mask", "m2pt, explicit mask", None),
            ("step with plain norms", "m2pt, plain norms", None),
            ("forward", "forward alone", 2.4),
        ]
        for label, key, target in over:
            found.append(
                Figure(
                    f"{geometry}: m2pt / {label}", file, lambda c, k=key: c["m2pt_over"][k]["median"], target, of=key
                )
            )
        found += [
            Figure(f"{geometry}: m2pt step", file, lambda c: 1e3 * _median(c["seconds"]["m2pt"]), None, unit=" ms"),
            Figure(f"{geometry}: utilisation", file, lambda c: c["utilisation"]["m2pt"], 0.50, least=True),
            Figure(f"{geometry}: m2pt peak", file, lambda c: c["peak_bytes"]["m2pt"] / 2**30, None, unit=" GiB"),
        ]
    for shape, per_image in (("mme", "2"), ("pope", "18")):
        file = f"answering-{answering}-{shape}"

        def block(content: Any, key: str = per_image) -> Any:
            return content["per_image"][key]

        whole = MME_SECONDS if shape == "mme" else None
        found += [
            Figure(
                f"{shape}: all questions", file, lambda c, b=block: b(c)["whole_seconds"]["engine"], whole, unit=" s"
            ),
            Figure(
                f"{shape}: gain over the plain loop", file, lambda c, b=block: b(c)["gain"]["engine"]["median"], None
            ),
        ]
    file = f"decoding-{decoding}"
    for rows in rows_decoded:
        read: Callable[[Any], float] = lambda c, r=rows: c["batch"][r]["over_bare"]["m2pt"]["median"]  # noqa: E731
        speed: Callable[[Any], float] = lambda c, r=rows: c["batch"][r]["tokens_per_second"]["m2pt"]  # noqa: E731
        found.append(Figure(f"decoding, {rows} row(s): adapter / bare", file, read, 1.02))
        found.append(Figure(f"decoding, {rows} row(s): tokens/s", file, speed, None))
    return found


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="kind of device the results are of")
    parser.add_argument("--small", action="store_true", help="the figures of the small geometry")
    arguments = parser.parse_args()
    if arguments.small:  # the targets are those of 7B
        chosen = [replace(figure, target=None) for figure in figures(["small"], "small", "small", ("1", "4"))]
    else:
        chosen = figures(["llava-v1-7b", "llava-1.5-7b"], "llava-1.5-7b", "llava-1.5-7b", ("1", "16"))
    rows = [figure.row(arguments.device) for figure in chosen]
    places = sorted({row[4] for row in rows if row[4]})
    print(table("figure, target", ["figure", "value", "target", "verdict"], [row[:4] for row in rows]))
    print("\n".join(places))


if __name__ == "__main__":
    main()
