import importlib.util
from pathlib import Path

import cv2
import pytest
import torch

from tests import tiny

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_simulate.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_simulate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZES", (64,))
    monkeypatch.setattr(module, "generate_face", lambda person, photo, size: tiny.face(person))
    threads = cv2.getNumThreads(), torch.get_num_threads()
    yield module
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])


def test_tables_have_a_row_for_each_way(bench, capsys):
    bench.main(faces=None, public=None, rounds=1, images=1, batch=2, on_cpu=False)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 64 |")]
    assert [row.split(" | ")[1] for row in rows[:3]] == ["alpha", "Poisson", "supply"]
    difference, largest = rows[3].strip("| ").split(" | ")[3:]
    assert 0 < float(difference) < 1
    assert int(largest) <= 1


def test_the_torch_renderer_has_rows_of_its_own(bench, capsys, monkeypatch):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    bench.main(faces=None, public=None, rounds=1, images=1, batch=2, on_cpu=True)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 64 |")]
    assert [row.split(" | ")[1] for row in rows[4:]] == ["cpu, alpha", "cpu, Poisson"]
    assert all(row.endswith("| 2 |") for row in rows[4:])


def test_a_folder_without_the_public_code_is_named(bench, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkout of SelfBlendedImages"):
        bench.main(faces=None, public=tmp_path, rounds=1, images=1)
