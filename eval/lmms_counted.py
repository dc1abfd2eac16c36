"""Unmodified lmms-eval, with a note of whether the skill was used and which pictures were seen.

    python eval/lmms_counted.py NOTE eval --model llava ...

NOTE receives ``{"fpl_calls": 12, "pictures": ["5d1f...", ...]}``: the number of times that a
Forgery Prompt Learner made E_forgery, in any model, and digests of the pictures of the forgery
tasks. With several ranks each writes its own, NOTE with the rank appended.
"""

import hashlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from llava_forgery.files import write_json
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.integrations.lmms_eval import tasks


def main(note: Path, arguments: list[str]) -> None:
    """Run lmms-eval's command line with these arguments; the note is written when it ends."""
    calls, seen = 0, set()
    forward, pictures = ForgeryPromptLearner.forward, tasks.pictures

    def counted(self: ForgeryPromptLearner, *inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(self, *inputs)

    def shown(doc: Any) -> list[Any]:
        found = pictures(doc)
        seen.update(hashlib.sha256(image.tobytes()).hexdigest() for image in found)
        return found

    ForgeryPromptLearner.forward, tasks.pictures = counted, shown
    sys.argv = ["lmms_eval", *arguments]
    try:
        runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
    finally:
        rank = os.environ.get("RANK")
        name = note.name if rank is None else f"{note.name}.{rank}"
        write_json(note.with_name(name), {"fpl_calls": calls, "pictures": sorted(seen)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
