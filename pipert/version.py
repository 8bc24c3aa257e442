"""The version of pipert: setup.py, the native module and plan files take it from here."""

__version__ = "0.1.0"
