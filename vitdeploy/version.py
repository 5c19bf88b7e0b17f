"""The version of vitdeploy. The package, its metadata and its releases take it from here."""

__version__ = "0.1.0"
