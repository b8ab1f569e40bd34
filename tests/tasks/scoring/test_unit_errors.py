"""Units against reference units."""

from __future__ import annotations

import random

import jiwer
import pytest
from voxzoo.tasks.scoring.unit_errors import Agreement, agreement, merged


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([3, 3, 5], [3, 5, 5, 5], Agreement(0, 2)),
        ([], [4, 4], Agreement(1, 1)),
        ([4, 1], [], Agreement(2, 0)),
        ([1, 2, 1], [1, 1], Agreement(2, 1)),
    ],
)
def test_runs_count_once(ours: list[int], theirs: list[int], expected: Agreement):
    assert agreement(ours, theirs) == expected


def test_edits_are_those_of_jiwer():
    draws = random.Random(0)
    for _ in range(50):
        ours, theirs = ([draws.randrange(4) for _ in range(draws.randrange(1, 12))] for _ in range(2))
        said = [" ".join(map(str, merged(each))) for each in (theirs, ours)]
        found = jiwer.process_words(*said)
        assert agreement(ours, theirs).errors == found.substitutions + found.deletions + found.insertions
