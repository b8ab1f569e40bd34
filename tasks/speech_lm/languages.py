"""Which languages the rows of a batch go from and to, among those that a speech LM has a tag for."""

from __future__ import annotations

from ...components.errors import UserError
from ...components.joint_vocabulary import JointVocabulary
from ...components.types import Batch


def row_languages(batch: Batch, vocabulary: JointVocabulary) -> list[tuple[str, str]]:
    """Source and target language of each row.

    Raises:
        UserError: a row whose languages are not said.
    """
    known = vocabulary.languages
    if not batch.src_lang and not batch.tgt_lang:  # made up, for a plan
        return [(known[0], known[-1])] * len(batch)
    nothing = ("",) * len(batch)
    said = zip(batch.ids, batch.src_lang or nothing, batch.tgt_lang or nothing, strict=True)
    return [_both(source, target, f"utterance {name}", vocabulary) for name, source, target in said]


def _both(source: str, target: str, whose: str, vocabulary: JointVocabulary) -> tuple[str, str]:
    """Where one language of two is not said, it is the other."""
    known = vocabulary.languages
    if source and target:
        return source, target
    if len(known) != 2 or not (source or target):
        raise UserError(f"{whose}: its languages are not said; give both of {', '.join(known)}")
    said = vocabulary.find(source or target)
    other = known[0] if said != known[0] else known[1]
    return (source, other) if source else (other, target)
