"""Other people's programs with the forgery skill: ``register()``, then their module as it is.

    python -m llava_forgery.run [--cpu] MODULE ARGS...

MODULE runs as ``python -m MODULE ARGS...`` runs it, after the ``llava`` that Python finds, LLaVA's
or LLaVA-NeXT's, has been taught the skill. ``llava-forgery run`` is the same; torchrun, accelerate
and deepspeed start this module.
"""

import argparse
import os
import runpy
import sys
import warnings
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Register, then run a module as ``__main__``.

    Args:
        arguments: ``[--cpu] MODULE ARGS...``; by default those of the process.

    Raises:
        ImportError: There is no such module, or no ``llava`` that runs.
        RuntimeError: ``--cpu`` was given, but the process sees a GPU already.
    """
    given = _parse(arguments)
    if given.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from llava_forgery.hosts.cpu import use_cpu

        use_cpu()
    from llava_forgery.hosts.llava.compat import register_any

    register_any()
    # LLaVA's models hand the cache on by its old name; nobody who runs them can change that.
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", module=r"llava\.")
    sys.argv = [given.module, *given.arguments]
    runpy.run_module(given.module, run_name="__main__", alter_sys=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava_forgery.run",
        usage="%(prog)s [--cpu] MODULE ARGS...",
        description="Run a module with the forgery skill registered.",
    )
    parser.add_argument("--cpu", action="store_true", help="take the CPU where it asks for a GPU")
    # deepspeed puts it before everything else, and means it for the module.
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("module", metavar="MODULE", help="such as llava.serve.cli, or lmms_eval")
    line = list(sys.argv[1:] if arguments is None else arguments)
    place = next((i for i, word in enumerate(line) if not word.startswith("-")), len(line))
    given = parser.parse_args(line[: place + 1])
    rank = [] if given.local_rank is None else [f"--local_rank={given.local_rank}"]
    given.arguments = [*rank, *line[place + 1 :]]
    return given


if __name__ == "__main__":
    main()
