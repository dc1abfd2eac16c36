"""From an adapter and its host to one checkpoint that transformers loads by its auto classes."""

from os import PathLike
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData

from llava_forgery.files import atomic_path, check_output_folder
from llava_forgery.hosts.names import CARD, MODEL_CONFIG
from llava_forgery.hosts.placement import ALWAYS
from llava_forgery.hosts.quantized import device_map_of, pick_device, place_host
from llava_forgery.hosts.transformers.exported import (
    MODELING,
    LlavaForgeryConfig,
    LlavaForgeryForConditionalGeneration,
)
from llava_forgery.hosts.transformers.exported_processor import (
    ForgerySettings,
    LlavaForgeryProcessor,
)
from llava_forgery.hosts.transformers.loading import load_pretrained as load_adapter_folder
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.hub import is_hub_name, local_folder
from llava_forgery.kfd.skeleton import describe
from llava_forgery.noise import quiet


def export_transformers(
    directory: str | PathLike,
    out: str | PathLike,
    base_model: str | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    allow_download: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Write host, merged LoRA, detector and learner as one checkpoint of transformers.

    Args:
        directory: A forgery adapter for a host of transformers: its folder or hub name.
        out: Folder to write; an earlier export there is replaced as a whole.
        base_model: The host's folder or hub name; by default the one the adapter names.
        dtype: Of the host's weights; detector and learner stay in float32.
        allow_download: Whether what the adapter's files name may be downloaded.
        max_shard_size: Largest file of weights, as transformers takes it.

    Raises:
        FileNotFoundError: Adapter or host is missing.
        ValueError: The host is another one, a file is damaged, or ``out`` holds something else.
    """
    check_output_folder(out, MODEL_CONFIG, f"{MODELING}.py")
    vlm = load_adapter_folder(
        directory, base_model, device="cpu", dtype=dtype, allow_download=allow_download
    )
    save_exported(vlm, out, max_shard_size)


@quiet()
@torch.no_grad()
def save_exported(vlm: ForgeryVLM, out: str | PathLike, max_shard_size: str = "5GB") -> None:
    """Write a loaded model as :func:`export_transformers` does; its LoRA is merged.

    Args:
        vlm: In eval mode, with its processor.
        out: Folder to write; an earlier export there is replaced as a whole.
        max_shard_size: Largest file of weights, as transformers takes it.

    Raises:
        ValueError: The host is quantised, or ``out`` holds something else.
    """
    check_output_folder(out, MODEL_CONFIG, f"{MODELING}.py")
    if vlm.has_lora:
        vlm.merge_lora()
    host = vlm.host
    config = LlavaForgeryConfig(
        host_config=host.config,
        fpl=vlm.fpl.config.to_dict(),
        kfd=describe(vlm.kfd),
        forgery_token_id=vlm.token_id,
        fingerprint=vlm.fingerprint,
        host_name=Path(vlm.host_name).name if Path(vlm.host_name).is_dir() else vlm.host_name,
        training=vlm.training_facts,
        placement=vlm.placement,
        crop=vlm.crop,
        dtype=host.dtype,
    )
    with torch.device("meta"):
        model = LlavaForgeryForConditionalGeneration(config)
    model.kfd.load_state_dict(_whole_state(vlm, model), assign=True)
    model.host, model.fpl = host, vlm.fpl
    model.generation_config = host.generation_config
    size = None if not vlm.takes_forgery_images else vlm.kfd.config.encoder.image_size
    settings = ForgerySettings(vlm.n_forgery, size, ALWAYS, vlm.placement == ALWAYS, vlm.crop)
    processor = LlavaForgeryProcessor.over(vlm.processor, settings)
    with atomic_path(out) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        processor.save_pretrained(temporary)
        _card(config).save(temporary / CARD)


def _whole_state(vlm: ForgeryVLM, model: ForgeryVLM) -> dict[str, torch.Tensor]:
    """The detector's tensors with all buffers, and without what only training needs."""
    held = {**dict(vlm.kfd.named_parameters()), **dict(vlm.kfd.named_buffers())}
    return {name: tensor for name, tensor in held.items() if name in model.kfd.state_dict()}


@quiet()
def load_pretrained(
    directory: str | PathLike,
    base_model: str | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantization: str | None = None,
    allow_download: bool = False,
) -> LlavaForgeryForConditionalGeneration:
    """:meth:`llava_forgery.hosts.auto.AutoForgeryModel.from_pretrained` of exported checkpoints.

    Raises:
        ValueError: A host or a quantisation is given, or the checkpoint lacks weights.
    """
    if base_model is not None or quantization is not None:
        raise ValueError(
            f"{directory} is an exported checkpoint, which holds its host: give no base_model and "
            "no quantization, or give the adapter that it was exported from"
        )
    directory = local_folder(directory)
    model, report = LlavaForgeryForConditionalGeneration.from_pretrained(
        directory, dtype=dtype, output_loading_info=True, **device_map_of(device)
    )
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(
            f"{directory} does not hold all weights: {len(lacking)} are missing, such as "
            f"{lacking[0]}; export the adapter again, or download it again"
        )
    processor = LlavaForgeryProcessor.from_pretrained(directory)
    model.use_processor(processor.host_processor())
    if device != "auto":
        # Detector and learner keep their precision.
        place_host(model.host, device, dtype)
        model.to(pick_device(device))
    return model.eval()


def _card(config: LlavaForgeryConfig) -> ModelCard:
    data = ModelCardData(
        base_model=config.host_name if is_hub_name(config.host_name) else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["deepfake-detection"],
    )
    text = _CARD.format(host=config.host_name)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


_CARD = """\
# `{host}` with forgery skills

One checkpoint with the host, its merged LoRA, the detector and the Forgery Prompt Learner.

```python
# pip install llava-forgery
import llava_forgery
from transformers import pipeline

llava_forgery.register_auto_classes()  # or trust_remote_code=True, whose code imports the package
pipe = pipeline("image-text-to-text", "FOLDER")
question = {{"type": "text", "text": "Is this a deepfake?"}}
pipe([{{"role": "user", "content": [{{"type": "image", "path": "face.png"}}, question]}}])
```

Labels are real = 0 and fake = 1. A score is no proof: report it with its limits.
"""
