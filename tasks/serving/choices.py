"""What can be asked of the engines, for parsers that must not import them."""

from __future__ import annotations

EVALUATED = ("s2st", "t2st", "s2tt", "t2tt", "u2s", "asr")
"""In the order in which a task lends its scores to the top of the answer of `evaluate`."""
SPEECH_IN = ("s2st", "s2tt", "asr")
"""Those that read speech."""
TRANSLATED = ("s2st", "s2tt", "asr", "t2tt", "t2st")
RECOGNISERS = ("base", "tiny.en", "none")
QUALITIES = ("all", "none")
"""How output speech sounds: measured as far as the packages are there, or not."""
NORMALISERS = ("none", "iwslt", "speech")
"""Of the texts that `score` compares."""
TOKENIZERS = ("13a", "char", "intl", "zh", "none")
"""Of its BLEU."""
PROMPTS = ("own", "shuffled", "other")
"""Whose voice output speech is to have: that of its source, of another row, or of a row of another speaker."""
UTILITIES = ("chrf", "bleu")
"""What candidates of a consensus agree by."""
PRECISIONS = ("32-true", "bf16-true", "16-true")
"""What the parameters can be kept in."""
MADE_NOISES = ("white", "pink", "babble")
"""Noise that needs no recordings of noise."""
CODECS = ("mp3", "opus", "opus-low", "narrowband", "mulaw")
"""What source speech may have gone through."""
