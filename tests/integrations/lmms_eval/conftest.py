"""A tiny adapter with its host on disk, simulated forgeries, and lmms-eval on both."""

from pathlib import Path

import pytest
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from llava_forgery.data.export_eval import export_simulated
from llava_forgery.faces.records import load_faces, save_faces
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.integrations.lmms_eval.data import VARIABLE
from llava_forgery.simulate.pairs import CENTRED, FacePairs
from tests import tiny

TASKS = Path(__file__).parents[3] / "eval/lmms_tasks"


@pytest.fixture(scope="session")
def adapter(tmp_path_factory) -> Path:
    """adapter/, and beside it host/."""
    folder = tmp_path_factory.mktemp("lmms")
    host, processor = tiny.llava()
    # Else the new host only repeats the last token of its prompt, whatever it sees.
    with torch.no_grad():
        for weight in host.model.language_model.layers.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    model, processor = load_host(folder, str(folder / "host"))
    vlm = attach_forgery(model, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    tiny.tell_apart(vlm.fpl, 100)
    vlm.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> FacePairs:
    folder = tmp_path_factory.mktemp("faces")
    save_faces([tiny.face(i, "test") for i in range(3)], folder, {})
    return FacePairs(load_faces(folder), 5, size=tiny.SIZE, seed=1, framing=CENTRED)


@pytest.fixture(scope="session")
def data(pairs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "eval"
    export_simulated(pairs, folder)
    return folder


@pytest.fixture
def evaluate(data, monkeypatch):
    """Run tasks as ``python -m lmms_eval eval`` does, but without lmms-eval's own tasks."""
    monkeypatch.setenv(VARIABLE, str(data))

    def run(model, *tasks, name="llava_forgery", include=TASKS, **options):
        manager = TaskManager(include_path=str(include), include_defaults=False, model_name=name)
        return simple_evaluate(
            model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options
        )

    return run
