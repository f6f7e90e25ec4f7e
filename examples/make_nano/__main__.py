"""Make nano, the embedded base: pre-train a small LLaVA on text, drawn scenes and captions.

    python examples/make_nano --work-dir nano-run --output m2pt_cli/models/nano

Takes about 40 minutes on one CPU core with fast bf16 products, longer without. It may be stopped at any time; a restart
resumes from the last checkpoint in ``--work-dir``. The same seed gives the same weights on the same machine. All scores
are in ``log.jsonl`` there. The package must be installed (``python -m pip install -e .``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from alignment import Diet, all_scores, train_alignment, train_naming
from decoder import train_decoder
from export import export_nano, rounded
from geometry import build_nano
from language import loose_talk
from stage import Run
from tower import train_tower
from words import BOS, EOS, IMAGE, PAD, vocabulary

STEPS = {
    "tower": 3000,
    "recall": 450,
    "toys": 800,
    "facts": 900,
    "talk": 400,
    "naming": 200,
    "alignment": 1000,
    "describing": 600,
    "polishing": 450,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints and the log")
    parser.add_argument("--output", type=Path, required=True, help="where the finished base goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps: 0.01 tries the script out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    run = Run(arguments.work_dir, arguments.seed)
    steps = {name: max(2, round(number * arguments.scale)) for name, number in STEPS.items()}

    tower = train_tower(run, steps=steps["tower"])
    torch.manual_seed(run.seed)
    model = build_nano(len(vocabulary()), pad=PAD, bos=BOS, eos=EOS, image=IMAGE)
    train_decoder(run, model, steps)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    train_naming(run, model, steps=steps["naming"])
    train_alignment(run, model, "alignment", steps=steps["alignment"], rate=0.01, diet=Diet())
    train_alignment(run, model, "describing", steps=steps["describing"], rate=0.006, diet=Diet(any_request=0.65))
    polish = Diet(any_request=0.65, talker=loose_talk, often={"relation": 2.0, "count": 2.5, "ground": 1.0})
    train_alignment(run, model, "polishing", steps=steps["polishing"], rate=0.006, diet=polish)
    scores = all_scores(rounded(model))
    run.log("finished", scores=scores)
    export_nano(model, arguments.output, scores=scores, seed=run.seed, steps=steps)


if __name__ == "__main__":
    main()
