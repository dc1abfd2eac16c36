"""Adapters that were written by earlier code say today what they said then."""

import json
from pathlib import Path

import pytest
import torch

from llava_forgery.hosts.llava.loading import load_llava
from llava_forgery.hosts.transformers.loading import load_adapter
from tests.hosts import stored
from tests.tiny_llava import require_llava

FORMATS = Path(__file__).parent / "formats"


def check(said: dict, number: int, layout: str) -> None:
    wanted = json.loads((FORMATS / f"{number}.json").read_text())[layout]
    assert said["answer"] == wanted["answer"]
    for name in ("score", "p_yes"):
        assert said[name] == pytest.approx(wanted[name], abs=1e-5)


def test_format_1_of_transformers(tmp_path):
    folder = stored.unpack(FORMATS / "1-transformers.tar.xz", tmp_path / "adapter")
    check(
        stored.run_transformers(load_adapter(folder, *stored.transformers_host())),
        1,
        "transformers",
    )


def test_format_1_of_llava(tmp_path, monkeypatch):
    require_llava()
    monkeypatch.chdir(tmp_path)
    folder = stored.unpack(FORMATS / "1-llava.tar.xz", tmp_path / "llava-lora")
    base = stored.save_llava_host(tmp_path / "llava-tiny")
    tokenizer, model = load_llava(folder, str(base), dtype=torch.float32, device="cpu")
    check(stored.run_llava(tokenizer, model), 1, "llava")
