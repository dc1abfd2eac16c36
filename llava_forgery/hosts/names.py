"""Names of an adapter's files, and of checkpoints that include their host."""

from os import PathLike
from pathlib import Path

from llava_forgery.files import read_json

CONFIG, FPL, KFD, CARD = "forgery_config.json", "fpl.safetensors", "kfd", "README.md"
MODEL_CONFIG = "config.json"
# The model type in it, of a checkpoint that holds its host as well
# (:mod:`llava_forgery.hosts.transformers.exported`).
EXPORTED = "llava_forgery"


def is_exported(directory: str | PathLike) -> bool:
    """Whether a folder holds a checkpoint of transformers with host and skill."""
    path = Path(directory) / MODEL_CONFIG
    values = read_json(path) if path.is_file() else {}
    return isinstance(values, dict) and values.get("model_type") == EXPORTED
