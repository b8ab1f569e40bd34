"""Unit extractors: speech to discrete units."""

from .kmeans import KMeansUnits

__all__ = ["KMeansUnits"]
