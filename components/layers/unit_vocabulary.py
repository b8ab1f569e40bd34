"""The rows of the unit vocabulary in SeamlessM4T's second pass: bos 0, pad 1, eos 2, unk 3, unit u at u + 4, then what
else there is."""

from __future__ import annotations

BOS, PAD, EOS, UNK = range(4)
OFFSET = 4


def vocabulary_size(given: int | None, needed: int, what: str) -> int:
    """Rows of the table: `given`, or (None) no more than needed.

    Args:
        needed: rows of all that is in it.
        what: that, for the message.

    Raises:
        ValueError: fewer rows than needed.
    """
    if given is not None and given < needed:
        raise ValueError(f"vocab_size={given} is too small: 4 specials, {what} need {needed} rows")
    return needed if given is None else given
