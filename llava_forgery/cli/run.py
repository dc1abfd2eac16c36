"""The command that runs third-party programs with the skill."""

import os
import sys
from typing import Annotated

import typer

from llava_forgery.cli.app import app


@app.command(
    name="run", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
)
def run_module(
    module: Annotated[
        str,
        typer.Argument(
            help="Module, such as llava.serve.cli, llava.serve.model_worker or lmms_eval."
        ),
    ],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the module.")] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Use the CPU if the module asks for a GPU.")
    ] = False,
) -> None:
    """Run a module like python -m MODULE, with the skill registered.

    Checkpoints with the skill then load in LLaVA's own tools and in lmms-eval.
    """
    options = ["--cpu"] if cpu else []
    command = [sys.executable, "-m", "llava_forgery.run", *options, module, *(arguments or [])]
    # Replaces this process, so that output, errors and status are the module's own.
    os.execv(sys.executable, command)
