"""The words that the virtual CPU shares with translated code: the translator's layout, under one name for the whole VMM."""

from bt.window import Word

__all__ = ["Word"]
