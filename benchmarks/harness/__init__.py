"""What all benchmarks share: implementations of one computation on the same weights and inputs, compared before they
are timed, then timed in turns; memory; the share of what the machine can do; and a history.

A path is a module with `cases(options)`, run as `python -m benchmarks.PATH` from the checkout. It imports from here;
nothing in here imports a path by name.
"""

from __future__ import annotations

import os

# Before torch is imported: idle threads of OpenMP then sleep, and process CPU time counts work instead of waiting.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .case import Case, Other, Unequal, difference
from .compare import Result, main, measure, run, run_path
from .options import Options
from .weights import adopt, adopt_all, randomise

__all__ = [
    "Case",
    "Options",
    "Other",
    "Result",
    "Unequal",
    "adopt",
    "adopt_all",
    "difference",
    "main",
    "measure",
    "randomise",
    "run",
    "run_path",
]
