"""Third-party programs with the forgery skill: ``register()``, then their unchanged module.

    python -m llava_forgery.run [--cpu] MODULE ARGS...

MODULE runs as with ``python -m MODULE ARGS...``, after the skill is registered in the ``llava``
that Python finds, LLaVA's or LLaVA-NeXT's. ``llava-forgery run`` does the same; torchrun,
accelerate and deepspeed start this module.
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
        ImportError: There is no such module, or no working ``llava``.
        RuntimeError: ``--cpu`` is given, but the process already sees a GPU.
    """
    given = _parse(arguments)
    if given.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from llava_forgery.hosts.cpu import use_cpu

        use_cpu()
    from llava_forgery.hosts.llava.compat import register_any

    register_any()
    # LLaVA's models pass the cache by its old name, which users cannot change.
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", module=r"llava\.")
    sys.argv = [given.module, *given.arguments]
    runpy.run_module(given.module, run_name="__main__", alter_sys=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava_forgery.run",
        usage="%(prog)s [--cpu] MODULE ARGS...",
        description="Run a module with the forgery skill registered.",
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU if it asks for a GPU")
    # deepspeed puts it before everything else, but it is for the module.
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
