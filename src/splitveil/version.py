"""The version, in one place that needs no dependency."""

__version__ = "0.1.0"
