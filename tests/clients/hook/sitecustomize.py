"""What a client's process does with the skill, written to the folder FORGERY_CALLS as it happens.

Python imports this file at start where its folder is on PYTHONPATH. ``fpl`` gets a letter for each
call of the Forgery Prompt Learner; ``TIME-PROCESS-N.pt`` what the client gave ``generate``.
"""

import functools
import importlib.util
import itertools
import os
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FORGERY_CALLS"])
NUMBERS = itertools.count()


def count(module):
    learner = module.ForgeryPromptLearner
    forward = learner.forward

    @functools.wraps(forward)
    def counted(self, detection):
        # One system call, so that threads and processes can share the file.
        with open(FOLDER / "fpl", "ab", buffering=0) as file:
            file.write(b"x" * len(detection.class_logits))
        return forward(self, detection)

    learner.forward = counted


def record(module):
    import torch

    call = module.LlavaForgeryMixin._call_with_skill

    @functools.wraps(call)
    def recorded(self, function, args, kwargs, *others):
        if function.__name__ == "generate":
            ids = args[0] if args else kwargs.get("inputs")
            given = {"ids": ids, "images": kwargs.get("images"), "sizes": kwargs.get("image_sizes")}
            # Threads and processes that ask at once write a file each.
            name = f"{time.monotonic_ns()}-{os.getpid()}-{next(NUMBERS)}.pt"
            torch.save(given, FOLDER / name)
        return call(self, function, args, kwargs, *others)

    module.LlavaForgeryMixin._call_with_skill = recorded


HOOKS = {
    "llava_forgery.fpl.learner": count,
    "llava_forgery.hosts.llava.skill": record,
}


class Finder:
    """Has a hook run once its module is executed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        hook = HOOKS.pop(name, None)
        if hook is None:
            return None
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            hook(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder)
