"""The version, where the build and the results find it."""

__version__ = "0.1.0"
