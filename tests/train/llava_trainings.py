"""Several trainings in one process: it takes longer to start one than to train it.

    torchrun --nproc_per_node 2 tests/train/llava_trainings.py WORDS.json

WORDS.json holds a list of command lines for ``llava_forgery.train.llava_train``.
"""

import json
import sys
from pathlib import Path

from llava_forgery.train.llava_flags import parse_arguments
from llava_forgery.train.llava_train import run

if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text()):
        run(parse_arguments(words))
