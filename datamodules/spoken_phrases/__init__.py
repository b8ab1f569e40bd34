"""The built-in corpus: template sentences in several languages, spoken by a synthesiser, with English translations."""

from .corpus import SpokenPhrases

__all__ = ["SpokenPhrases"]
