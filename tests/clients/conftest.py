"""A LLaVA that sees its pictures through E_forgery alone, and the processes that run it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava.model import attach_to_llava
from llava_forgery.hosts.llava.tower import KFDVisionTower
from tests import tiny, tiny_llava

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
# Crowded machines import for minutes.
PATIENCE = 1800


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> tuple[Path, Path]:
    """A picture that the checkpoint's detector finds real, and one that it finds fake."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, pixels in (("real", tiny.picture(0)), ("fake", 255 - tiny.picture(1))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / "real.png", folder / "fake.png"


@pytest.fixture(scope="session")
def checkpoint(pictures, tmp_path_factory) -> Path:
    """A whole model whose own projector gives zeros: pictures reach it by E_forgery alone."""
    tiny_llava.require_llava()
    root = tmp_path_factory.mktemp("checkpoint")
    words, model, _ = tiny_llava.load_llava(tiny_llava.save_llava(root / "tiny-llava"))
    # As many places as LLaVA's own prompt has words, so that they are heard.
    sizes = FPLConfig(hidden_size=tiny_llava.WIDTH, num_layers=3, n_forgery=64)
    attach_to_llava(model, tiny_llava.save_kfd(root / "kfd"), sizes)
    inner = model.get_model()
    with torch.no_grad():
        for weight in inner.mm_projector.parameters():
            weight.zero_()
        _tell_apart(inner.forgery_tower, pictures)
        # By the score alone, and strongly.
        direction = torch.randn(tiny_llava.WIDTH, generator=torch.Generator().manual_seed(0))
        inner.forgery_projector.score.weight.copy_(torch.stack([direction, -direction], dim=1))
    model.config.mm_forgery_placement, model.config.mm_forgery_crop = "always", "none"
    # LLaVA's tools take the template from the name: vicuna's.
    folder = root / "tiny-llava-v1-forgery"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _tell_apart(tower: KFDVisionTower, pictures: Sequence[Path]) -> None:
    """Let the classifier's last layer say real of the first picture and fake of the second."""
    last, seen = tower.kfd.classifier.fc[-1], []
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs))
    tower(tower.image_processor([Image.open(path) for path in pictures])["pixel_values"])
    handle.remove()
    real, fake = seen[0]
    apart = (fake - real) / (fake - real).pow(2).sum()
    for sign, row in ((-10, 0), (10, 1)):
        last.weight[row] = sign * apart
        last.bias[row] = -sign * apart @ (real + fake) / 2


@pytest.fixture(scope="session")
def unused(checkpoint) -> Path:
    """The same, but where it uses the skill: at written placeholders only."""
    folder = checkpoint.parent / "tiny-llava-v1-placeholders"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    values = json.loads((checkpoint / "config.json").read_text())
    values["mm_forgery_placement"] = "placeholders"
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@dataclass
class Process:
    """A client's command, what it may print into and what it did."""

    command: Sequence[str]
    environment: dict[str, str]
    folder: Path

    def run(self, said: str = "") -> str:
        """Its standard output, once it has ended well."""
        result = subprocess.run(
            self.command, input=said, capture_output=True, text=True, env=self.environment,
            cwd=self.folder, timeout=PATIENCE,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
        return result.stdout

    def start(self) -> subprocess.Popen:
        """The process, whose output goes to ``folder/log``."""
        with open(self.folder / "log", "w") as log:
            return subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, cwd=self.folder
            )

    @property
    def fpl_calls(self) -> int:
        """Images for which the Forgery Prompt Learner was asked."""
        path = self.folder / "calls/fpl"
        return path.stat().st_size if path.is_file() else 0

    @property
    def prompts(self) -> list[dict]:
        """What it gave ``generate``: ids (1, T), images and their sizes, in order."""
        found = (self.folder / "calls").glob("*.pt")
        paths = sorted(found, key=lambda path: int(path.stem.partition("-")[0]))
        return [torch.load(path, weights_only=True) for path in paths]


@pytest.fixture
def client(tmp_path_factory):
    """Prepare ``python ARGUMENTS...`` in a folder of its own, watched by the hook."""

    def prepare(*arguments: str | Path, **variables: str) -> Process:
        folder = tmp_path_factory.mktemp("client")
        (folder / "calls").mkdir()
        paths = [str(HOOK), str(ROOT), os.environ.get("PYTHONPATH", "")]
        inherited = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
        environment = {
            **inherited, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1",
            "FORGERY_CALLS": str(folder / "calls"), "OMP_NUM_THREADS": "1", **variables,
        }  # fmt: skip
        return Process([sys.executable, *map(str, arguments)], environment, folder)

    return prepare
