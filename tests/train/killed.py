"""Small trainings of every kind, and processes that are killed in the midst of them.

    python -m tests.train.killed FOLDER CASES.json

CASES.json holds a list of [KIND, OUT, CALL]: for each a process trains, and is killed (SIGKILL)
before the CALL-th file or folder that it writes gets its name.
"""

import json
import os
import signal
import sys
from pathlib import Path

import datasets

from llava_forgery import files
from llava_forgery.data.build_qa import build_conversations
from llava_forgery.data.forge import forge_folders
from llava_forgery.data.labelled import read_labelled
from llava_forgery.faces.records import FEATURES
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.rows import load_rows
from llava_forgery.simulate.pairs import FacePairs
from llava_forgery.train.adapter import train_adapter
from llava_forgery.train.antifake_prompt import train_pseudo_word
from llava_forgery.train.llava_train import main
from llava_forgery.train.stage1 import train_kfd
from tests import tiny, tiny_llava

KINDS = ("detector", "adapter", "pseudo-word", "llava")


def prepare(folder: Path) -> None:
    """The data of all kinds."""
    rows = [tiny.face(i).to_row() for i in range(4)]
    faces = datasets.Dataset.from_list(rows, features=FEATURES)
    faces.save_to_disk(str(folder / "faces"))
    pairs = FacePairs(faces, 3, size=tiny.SIZE)
    build_conversations(pairs, tiny.kfd(), folder / "qa")
    forge_folders(pairs, folder / "photos")
    tiny.kfd().save_pretrained(folder / "kfd")
    # Not made anew in each process: its tokenizer would be another one.
    for part in tiny.llava():
        part.save_pretrained(folder / "host")
    tiny_llava.save_llava(folder / "tiny-llava", aspect="pad")


def train(kind: str, folder: Path, out: Path, resume: bool = False) -> None:
    """Four steps, with checkpoints behind the second and the fourth."""
    host = load_host(folder, str(folder / "host"))
    options = {"batch_size": 2, "save_steps": 2, "resume": resume}
    if kind == "detector":
        faces = datasets.load_from_disk(str(folder / "faces"))
        train_kfd(tiny.kfd(), faces, out, steps=4, workers=0, **options)
    elif kind == "adapter":
        vlm = attach_forgery(*host, tiny.kfd(), lora=LoraSettings(r=2, dropout=0.0))
        train_adapter(vlm, load_rows(folder / "qa"), out, steps=4, **options)
    elif kind == "pseudo-word":
        options["batch_size"] = 3
        vlm = attach_pseudo_word(*host)
        train_pseudo_word(vlm, read_labelled(folder / "photos"), out, epochs=2, **options)
    else:
        flags = {
            "model_name_or_path": folder / "tiny-llava", "forgery_tower": folder / "kfd",
            "data_path": folder / "qa", "output_dir": out, "lora_enable": True, "lora_r": 2,
            "lora_dropout": 0, "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2,
            "model_max_length": 2048, "report_to": "none",
        }  # fmt: skip
        assert (
            main([str(word) for name, value in flags.items() for word in (f"--{name}", value)]) == 0
        )


def die_at(call: int) -> None:
    """Make the writer of files kill the process."""
    left = [call]
    apply_umask = files.apply_umask

    def count(path: Path) -> None:
        apply_umask(path)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    files.apply_umask = count


if __name__ == "__main__":
    for kind, out, call in json.loads(Path(sys.argv[2]).read_text()):
        # Importing takes longer than training.
        process = os.fork()
        if not process:
            die_at(call)
            train(kind, Path(sys.argv[1]), Path(out))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"{kind} was not killed at its file {call}: status {status}")
