"""The command ``llava-forgery``, with a subcommand for each step from photographs to an answer.

Importing a module of commands adds them to the application.
"""

from llava_forgery.cli import benchmarks, calibrate, data, doctor, preference, qa, real, scan, serve
from llava_forgery.cli import convert as llava
from llava_forgery.cli import evaluate as measuring
from llava_forgery.cli import predict as use
from llava_forgery.cli import run as launcher
from llava_forgery.cli import train as training
from llava_forgery.cli.app import app, main

__all__ = [
    "app",
    "benchmarks",
    "calibrate",
    "data",
    "doctor",
    "launcher",
    "llava",
    "main",
    "measuring",
    "preference",
    "qa",
    "real",
    "scan",
    "serve",
    "training",
    "use",
]
