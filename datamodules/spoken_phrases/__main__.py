"""`python -m voxzoo.datamodules.spoken_phrases PLAN OUT ENGINE SEED WORKERS`: speak a plan, print progress as numbers.

`SpokenPhrases.prepare` starts this, so that forks happen in a process that never imported torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .synthesis import speak_plan


def main(plan: str, out: str, engine: str, seed: str, num_workers: str) -> None:
    lengths = speak_plan(
        Path(plan),
        Path(out),
        engine=engine,
        seed=int(seed),
        num_workers=int(num_workers),
        progress=lambda added: print(added, flush=True),
    )
    (Path(out) / "lengths.json").write_text(json.dumps(lengths))


if __name__ == "__main__":
    main(*sys.argv[1:])
