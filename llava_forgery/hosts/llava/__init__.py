"""The backend for the ``llava`` package."""
