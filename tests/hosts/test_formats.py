"""Adapters that were written by earlier code say today what they said then."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.hosts.layouts import convert_adapter
from llava_forgery.hosts.llava.loading import load_llava
from llava_forgery.hosts.transformers.loading import load_adapter
from tests import tiny
from tests.hosts import stored
from tests.tiny_llava import require_llava

FORMATS = Path(__file__).parent / "formats"


def check(said: dict, number: int, layout: str) -> None:
    wanted = json.loads((FORMATS / f"{number}.json").read_text())[layout]
    assert said["answer"] == wanted["answer"]
    for name in ("score", "p_yes"):
        assert said[name] == pytest.approx(wanted[name], abs=1e-5)


def said_by(folder: Path) -> dict:
    return stored.run_transformers(load_adapter(folder, *stored.transformers_host()))


def test_format_1_of_transformers(tmp_path):
    """Loading it names the command, and what the command writes answers as before."""
    old = stored.unpack(FORMATS / "1-transformers.tar.xz", tmp_path / "old")
    with pytest.raises(ValueError, match="convert adapter --model .*old --out NEW"):
        said_by(old)
    result = CliRunner().invoke(
        app, ["convert", "adapter", "--model", str(old), "--out", str(tmp_path / "new")]
    )
    assert result.exit_code == 0, result.exception
    check(said_by(tmp_path / "new"), 1, "transformers")
    with pytest.raises(ValueError, match="format 2, nothing is to be done"):
        convert_adapter(tmp_path / "new", tmp_path / "newer")
    # The next one will be refused, and not taken for this.
    tiny.edit_json(tmp_path / "new/forgery_config.json", format=3)
    with pytest.raises(ValueError, match=r"format 3, this version reads 2; a newer llava-forgery"):
        said_by(tmp_path / "new")


def test_format_2_of_transformers(tmp_path):
    folder = stored.unpack(FORMATS / "2-transformers.tar.xz", tmp_path / "adapter")
    check(said_by(folder), 2, "transformers")


@pytest.mark.parametrize("number", [1, 2])
def test_formats_of_llava(number, tmp_path, monkeypatch):
    """LLaVA's layout is the same in both."""
    require_llava()
    monkeypatch.chdir(tmp_path)
    folder = stored.unpack(FORMATS / f"{number}-llava.tar.xz", tmp_path / "llava-lora")
    base = stored.save_llava_host(tmp_path / "llava-tiny")
    tokenizer, model = load_llava(folder, str(base), dtype=torch.float32, device="cpu")
    check(stored.run_llava(tokenizer, model), number, "llava")
    tiny.edit_json(folder / "config.json", mm_forgery_format=3)
    with pytest.raises(ValueError, match="mm_forgery_format 3, this version reads 1 to 2"):
        load_llava(folder, str(base))
