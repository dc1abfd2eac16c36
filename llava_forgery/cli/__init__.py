"""The command ``llava-forgery``: one subcommand for each step from photographs to an answer.

Importing a module of commands adds them to the application.
"""

from llava_forgery.cli import data, llava, measuring, training, use
from llava_forgery.cli.app import app, main

__all__ = ["app", "data", "llava", "main", "measuring", "training", "use"]
