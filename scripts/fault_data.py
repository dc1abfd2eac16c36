"""Faulty data sets and weights for fault_campaign, and the tiny model that judges."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from fault_inputs import REFUSED, SAME, encoded
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llava_forgery.cli import app
from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.faces.crop import crop_square
from llava_forgery.faces.detect import get_detector
from llava_forgery.faces.records import FEATURES, FaceCrop, save_faces
from llava_forgery.hosts.small_llava import CHAT_TEMPLATE, assemble_llava
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.images import read_image
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.checkpoint import CONFIG, WEIGHTS
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector

FACES = 6


def tiny_predictor() -> ForgeryPredictor:
    """The smallest possible host and detector, with random weights."""
    words = models.BPE()
    fast = Tokenizer(words)
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    fast.add_tokens(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host, processor = assemble_llava(LlamaForCausalLM(config), tokenizer, side=32, patch=16)
    processor.chat_template = CHAT_TEMPLATE
    encoder = EncoderConfig("timm", "test_efficientnet", None, (1, 2, 3), 16, 64)
    detector = KnowledgeGuidedForgeryDetector.from_config(KFDConfig(encoder=encoder), 0)
    vlm = attach_forgery(host.eval(), processor, detector.eval())
    return ForgeryPredictor(vlm, max_new_tokens=2)


def base_faces(samples: Path, out: Path) -> None:
    """A few people of the samples, every other one labelled fake, without faults."""
    finder = get_detector("dlib")
    faces = []
    for number, path in enumerate(sorted(samples.glob("*_03.jpg"))[:FACES]):
        pixels = read_image(path)
        crop, box, landmarks = crop_square(pixels, finder.detect(pixels)[0].landmarks, 96, 0.4)
        name = path.stem
        faces.append(
            FaceCrop(crop, landmarks, box, name, name, number % 2, path.name, "test",
                     method="made" if number % 2 else None)
        )  # fmt: skip
    save_faces(faces, out, {"made_by": "fault_campaign"})


def evaluated(model: Path, faces: Path, out: Path) -> dict[str, Any] | str:
    """Result of ``eval run``: its figures, its error message, or the traceback of a crash."""
    command = ["eval", "run", "--model", model, "--faces", faces, "--out", out, "--device", "cpu"]
    try:
        app([*map(str, command)], standalone_mode=False)
    except (ValueError, OSError, ImportError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"Traceback: {type(error).__name__}: {error}"
    metrics = json.loads((out / "metrics.json").read_text(), parse_constant=_no_number)
    metrics.pop("people_in_training", None)
    return metrics


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} stands in metrics.json")


@dataclass(frozen=True)
class Fault:
    """A folder with one fault."""

    name: str
    make: Callable[[Path, Path], object]
    """Writes the folder, given the intact one and the target."""
    expected: str = REFUSED
    exact: bool = True
    """Whether the figures equal those of the intact folder, or only their names do."""


def _row(**changes: Any) -> Callable[[Path, Path], None]:
    """Change the row of the second face; a value may be a function of the old one."""

    def make(base: Path, place: Path) -> None:
        shutil.copytree(base, place)
        rows = datasets.load_from_disk(str(base / "faces"))
        for name in ("image", "mask"):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        rows = [dict(row) for row in rows]
        for name, value in changes.items():
            rows[1][name] = value(rows[1][name]) if callable(value) else value
        shutil.rmtree(place / "faces")
        # Without the type of pictures, which would read the files of paths.
        features = datasets.Features(
            {
                name: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
                if isinstance(kind, datasets.Image)
                else datasets.Value("int64")
                if name == "label"
                else kind
                for name, kind in FEATURES.items()
            }
        )
        written = datasets.Dataset.from_list(rows, features=features)
        written.save_to_disk(str(place / "faces"))
        info = place / "faces/dataset_info.json"
        told = json.loads(info.read_text())
        whole = json.loads((base / "faces/dataset_info.json").read_text())
        info.write_text(json.dumps({**told, "features": whole["features"]}))

    return make


def _picture(**changes: Any) -> Callable[[Path, Path], None]:
    return _row(image=lambda old: {**old, **changes})


def _recoded(convert: Callable[[Image.Image], bytes]) -> Callable[[Path, Path], None]:
    return _row(
        image=lambda old: {"bytes": convert(Image.open(io.BytesIO(old["bytes"]))), "path": None}
    )


def _whole(data: Callable[[Image.Image], Image.Image]) -> Callable[[Image.Image], bytes]:
    return lambda image: encoded(data(image), "PNG")


def _file(name: str, change: Callable[[bytes], bytes | None]) -> Callable[[Path, Path], None]:
    """Change a file of the folder, or remove it if the change is None."""

    def make(base: Path, place: Path) -> None:
        shutil.copytree(base, place)
        (path,) = place.glob(name)
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)

    return make


def _weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path, Path], None]:
    def make(base: Path, place: Path) -> None:
        shutil.copytree(base, place)
        tensors = load_file(place / WEIGHTS)
        name = next(name for name in sorted(tensors) if tensors[name].dtype == torch.float32)
        tensors[name] = change(tensors[name])
        save_file(tensors, place / WEIGHTS)

    return make


def _spoilt(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = float("nan")
    return tensor


FACES_FAULTS = [
    Fault("a row's picture as RGBA", _recoded(_whole(lambda i: i.convert("RGBA"))), SAME),
    Fault("a row's picture as a palette", _recoded(_whole(lambda i: i.quantize(256))), SAME, False),
    Fault("a row without bytes", _picture(bytes=None, path=None)),
    Fault("a row with a path instead", _picture(bytes=None, path="/etc/hostname")),
    Fault("a row with an address instead", _picture(bytes=None, path="http://127.0.0.1:9/a.png")),
    Fault("a row with a page", _picture(bytes=b"<html>404</html>", path=None)),
    Fault("a row with half a picture", _recoded(lambda i: encoded(i, "PNG")[:900])),
    Fault("a row with an EPS", _picture(bytes=b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", path=None)),
    Fault("a video_id that leads out", _row(video_id="../../out")),
    Fault("an absolute identity", _row(identity="/etc/passwd")),
    Fault("a label of 7", _row(label=7)),
    Fault("landmarks that are no numbers", _row(landmarks=[[float("nan")] * 2] * 68)),
    Fault("a box inside out", _row(box=[9.0, 9.0, 1.0, 1.0])),
    Fault("rows cut off", _file("faces/*.arrow", lambda data: data[: len(data) // 2])),
    Fault("rows missing", _file("faces/*.arrow", lambda data: None)),
    Fault("no description", _file("faces/dataset_info.json", lambda data: b"{")),
    Fault("an empty folder", lambda base, place: place.mkdir(parents=True)),
    Fault("no folder", lambda base, place: None),
    Fault("one face of another split", _row(split="train"), SAME, False),
]
MODEL_FAULTS = [
    Fault("weights that are no numbers", _weights(_spoilt)),
    Fault("weights as integers", _weights(lambda tensor: tensor.to(torch.int32))),
    Fault("weights of another shape", _weights(lambda tensor: torch.zeros(3, 3))),
    Fault("weights cut off", _file(WEIGHTS, lambda data: data[: len(data) // 2])),
    Fault("weights missing", _file(WEIGHTS, lambda data: None)),
    Fault("weights that are a page", _file(WEIGHTS, lambda data: b"<html>404</html>")),
    Fault("a configuration cut off", _file(CONFIG, lambda data: data[: len(data) // 2])),
    Fault("a configuration of nothing", _file(CONFIG, lambda data: b"{}")),
]
