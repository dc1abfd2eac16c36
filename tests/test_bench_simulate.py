import importlib.util
import shutil
from pathlib import Path

import cv2
import pytest
import torch

from llava_forgery.faces.records import save_faces
from tests import tiny

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_simulate.py"


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_simulate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SIZES", (64,))
    threads = cv2.getNumThreads(), torch.get_num_threads()
    yield module
    cv2.setNumThreads(threads[0])
    torch.set_num_threads(threads[1])


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    save_faces([tiny.face(i) for i in range(4)], folder, {})
    return folder


def test_tables_have_a_row_for_each_way(bench, faces, capsys):
    bench.main(faces=faces, public=None, rounds=1, images=1, batch=2, on_cpu=False)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 64 |")]
    assert [row.split(" | ")[1] for row in rows[:3]] == ["alpha", "Poisson", "supply"]
    difference, largest = rows[3].strip("| ").split(" | ")[3:]
    assert 0 < float(difference) < 1
    assert int(largest) <= 1


def test_the_torch_renderer_has_rows_of_its_own(bench, faces, capsys, monkeypatch):
    monkeypatch.setattr(bench.torch.cuda, "is_available", lambda: False)
    bench.main(faces=faces, public=None, rounds=1, images=1, batch=2, on_cpu=True)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 64 |")]
    assert [row.split(" | ")[1] for row in rows[4:]] == ["cpu, alpha", "cpu, Poisson"]
    assert all(row.endswith("| 2 |") for row in rows[4:])


def test_a_folder_without_the_public_code_is_named(bench, faces, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkout of SelfBlendedImages"):
        bench.main(faces=faces, public=tmp_path, rounds=1, images=1)


def test_without_faces_those_of_the_samples_are_found(
    bench, samples_dir, capsys, monkeypatch, tmp_path
):
    pytest.importorskip("dlib")
    for name in ("001_03.jpg", "003_08.jpg"):
        shutil.copy(samples_dir / name, tmp_path)
    assert samples_dir.samefile(bench.SAMPLES)
    monkeypatch.setattr(bench, "SAMPLES", tmp_path)
    bench.main(faces=None, public=None, rounds=1, images=1, batch=2, on_cpu=False)
    lines = capsys.readouterr().out.splitlines()
    assert "2 faces" in lines[0]
    assert sum(line.startswith("| 64 |") for line in lines) >= 4
