"""Records, results and small models for the tests of scanning."""

import shutil
from pathlib import Path

from PIL import Image

from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.verdict import Verdict
from llava_forgery.scan.models import ModelSettings
from llava_forgery.scan.results import Result, to_result
from llava_forgery.scan.sources import Entry
from llava_forgery.scan.units import Item, Unit
from tests import tiny
from tests.faces.media import picture, video

PROVENANCE = {"answers": "none", "model": "m", "weights": "w", "versions": "v"}


def verdict(score: float, **changes) -> Verdict:
    values = {"p_yes": None, "answer": None, "regions": (), "agree": None, "mask": None}
    return Verdict(score=score, box=(0.0, 0.0, 9.5, 9.5), **{**values, **changes})


def result(path: str, *scores: float, sha256: str = "00" * 32, error=None, size=3) -> Result:
    """Of a photograph with faces of these scores."""
    entry = Entry(path, size, 1_700_000_000_000_000_007)
    faces = [verdict(score) for score in scores]
    item = Item(Unit(entry), sha256, error, verdicts=faces)
    item.pictures = [b"jpeg" if score >= 0.5 else None for score in scores]
    item.masks = [None] * len(scores)
    return to_result(item, PROVENANCE)


def duplicate(path: str, sha256: str, kind: str = "picture") -> Result:
    return Result(Entry(path, 3, 9), sha256, None, kind)


def save_model(folder: Path) -> ModelSettings:
    """The tiny host with the skill, saved."""
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    vlm = attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))
    vlm.save_pretrained(folder / "adapter")
    return ModelSettings(str(folder / "adapter"), str(folder / "host"))


def archive(root: Path, photographs: int = 8, videos: int = 2) -> Path:
    """Pictures and clips, two copies of the first picture, and three files that are broken."""
    for i in range(photographs):
        path = root / f"d{i % 3}" / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.picture(i)).save(path)
    for name in ("d1/copy.png", "d2/copy.png"):
        shutil.copy(root / "d0" / "0000.png", root / name)
    for i in range(videos):
        video(root / "clips" / f"{i}.mp4", [picture((10 + i + j, 20, 40)) for j in range(6)])
    (root / "text.png").write_bytes(b"no picture")
    (root / "empty.jpg").write_bytes(b"")
    (root / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    return root
