"""The forgery skill on a model of the ``llava`` package.

``attach_to_llava`` gives a loaded model an extra tower (the detector) and an extra projector (the
FPL) beside its own, ``model.get_model().forgery_tower`` and ``.forgery_projector``. The model's
``forward`` and ``generate`` then take ``forgery_images`` beside LLaVA's own inputs. Its tower, its
projector and the names of its weights stay as they are.

Source: LVLM-DFD, sections 3.2 and 3.3.
"""

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.fingerprint import host_fingerprint
from llava_forgery.hosts.llava_hooks import (
    FORGERY_TOKEN_INDEX,
    IMAGE_TOKEN_INDEX,
    NumberedHooks,
)
from llava_forgery.hosts.llava_images import pictures_of
from llava_forgery.hosts.llava_shared import LlavaSharedTower
from llava_forgery.hosts.llava_tower import PREFIX, KFDVisionTower
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.placeholder import count_placeholders
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_tower import HostEncoder

logger = logging.getLogger(__name__)

PROJECTOR_TYPE = "forgery_prompt_learner"
TOWER, PROJECTOR = "forgery_tower", "forgery_projector"
# What a model's configuration says of the skill.
CONFIG_KEYS = (
    "mm_forgery_tower",
    "mm_forgery_projector_type",
    "mm_forgery_fpl",
    "mm_forgery_host",
)
# The name in LLaVA's conv_templates that the skill was trained with; set by training.
TEMPLATE_KEY = "mm_forgery_template"


class SkilledLlava:
    """What a model of the ``llava`` package gains; its class is made by :func:`skilled_class`."""

    _forgery_hooks: NumberedHooks | None = None
    _forgery_derived = False
    _forgery_shared: LlavaSharedTower | None = None

    @property
    def n_forgery(self) -> int:
        """n_f: placeholders that a prompt must hold for each of its images."""
        return self.get_model().forgery_projector.config.n_forgery

    @property
    def takes_forgery_images(self) -> bool:
        """Whether calls take ``forgery_images``. A detector on the model's own vision tower reads
        ``images``, and each image is encoded once."""
        return self._forgery_shared is None

    @torch.no_grad()
    def detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        """The detector's output for images (N, 3, S, S) in [0, 1].

        Where it reads the model's tower, the output keeps the tower's features: handed on as
        ``detection``, it spares the model a second encoding.
        """
        if self._forgery_shared is not None:
            return self._forgery_shared.detect(forgery_images)
        return self.get_model().forgery_tower(forgery_images)

    @contextmanager
    def detector_alone(self) -> Iterator[KnowledgeGuidedForgeryDetector]:
        """The detector for calls without the model, also where it reads the model's tower."""
        shared = self._forgery_shared
        with nullcontext() if shared is None else shared.lent():
            yield self.get_model().forgery_tower.kfd

    def prepare_inputs_labels_for_multimodal(self, *args: Any, **kwargs: Any) -> Any:
        """LLaVA's own; it cuts what is longer than ``tokenizer_model_max_length`` without a word,
        which must not touch E_forgery.

        Raises:
            ValueError: E_forgery was cut off.
        """
        prepared = super().prepare_inputs_labels_for_multimodal(*args, **kwargs)
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        embeds = prepared[4]
        cut = embeds is not None and limit is not None and embeds.shape[1] >= limit
        if cut and self._forgery_hooks is not None:
            self._check_cut(embeds, limit)
        return prepared

    def _check_cut(self, embeds: torch.Tensor, limit: int) -> None:
        for sample, vectors in enumerate(self._forgery_hooks.samples()):
            if not len(vectors):
                continue
            last = vectors[-1].to(embeds.device, embeds.dtype)
            if not bool((embeds[sample] == last).all(dim=-1).any()):
                raise ValueError(
                    f"sample {sample} is longer than tokenizer_model_max_length {limit}, and what "
                    "was cut off holds forgery embeddings; raise --model_max_length"
                )

    def _call_with_skill(
        self,
        function: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        forgery_images: torch.Tensor | None,
        detection: KFDOutput | None,
    ) -> Any:
        """Call ``function`` (forward or generate) with E_forgery at the placeholders."""
        bound = inspect.signature(function).bind_partial(self, *args, **kwargs)
        given = bound.arguments
        name = "input_ids" if "input_ids" in given else "inputs"
        input_ids = given.get(name)
        if forgery_images is not None and detection is not None:
            raise ValueError("give either forgery_images or detection, not both")
        shared = self._forgery_shared
        if shared is not None and forgery_images is not None:
            raise ValueError(
                "this detector reads the model's own vision tower: give images alone, no "
                "forgery_images"
            )
        shown = forgery_images if detection is None else detection.class_logits
        placeholders = [0] if input_ids is None else _placeholders(input_ids)
        if not any(placeholders):
            if shown is not None and len(shown):
                raise ValueError(
                    f"{len(shown)} forgery images are given, but no prompt holds a forgery "
                    "placeholder; make prompts with llava_forgery.hosts.llava_prompt"
                )
            return function(*bound.args, **bound.kwargs)
        counts = _images_of(input_ids)
        wanted = self._check_prompts(placeholders, counts, given.get("images"))
        encoded = nullcontext()
        if shared is not None:
            detection, encoded = shared.prepare(given["images"], wanted, detection)
            shown = detection.class_logits
        elif shown is None:
            forgery_images = shown = self._derive(given["images"], wanted, given.get("image_sizes"))
        if len(shown) != len(wanted):
            raise ValueError(
                f"the prompts with forgery placeholders show {len(wanted)} images, but there are "
                f"{len(shown)} forgery images; give one for each image, in order"
            )
        if detection is None:
            detection = self.detect(forgery_images)
        rows = self.get_model().forgery_projector(detection).flatten(0, 1)
        # Looked up at each call: resizing and peft's modules_to_save put another in its place.
        hooks = NumberedHooks(self.get_input_embeddings(), FORGERY_TOKEN_INDEX)
        given[name] = hooks.number(input_ids)
        if (labels := given.get("labels")) is not None:
            given["labels"] = labels.masked_fill(labels == FORGERY_TOKEN_INDEX, IGNORE_INDEX)
        self._forgery_hooks = hooks
        try:
            with encoded, hooks.use(rows, placeholders):
                return function(*bound.args, **bound.kwargs)
        finally:
            hooks.remove()
            self._forgery_hooks = None

    def _check_prompts(
        self, placeholders: Sequence[int], counts: Sequence[int], images: Any
    ) -> list[int]:
        """Indices of the images that the detector is to see."""
        wanted, first = [], 0
        for sample, (have, shown) in enumerate(zip(placeholders, counts, strict=True)):
            if have and not shown:
                raise ValueError(
                    f"sample {sample} has {have} forgery placeholders but no <image>; begin its "
                    "first question with llava_forgery.hosts.llava_prompt.forgery_prefix"
                )
            if have and have != shown * self.n_forgery:
                raise ValueError(
                    f"sample {sample} has {have} forgery placeholders, expected "
                    f"{shown * self.n_forgery}: {self.n_forgery} for each of its {shown} images"
                )
            if have:
                wanted.extend(range(first, first + shown))
            # A sample without an image takes an empty one, as LLaVA's data sets give it.
            first += max(1, shown)
        if images is None:
            raise ValueError(f"the prompts show {sum(counts)} images, but no images are given")
        if len(images) != first:
            raise ValueError(
                f"the prompts take {first} images ({list(counts)} <image> tokens for each sample, "
                f"one empty image where there is none), but {len(images)} are given"
            )
        return wanted

    def _derive(self, images: Any, wanted: Sequence[int], sizes: Any) -> torch.Tensor:
        if not self._forgery_derived:
            self._forgery_derived = True
            logger.warning(
                "no forgery_images are given: the detector sees what the host's processor left of "
                "the images; give forgery_images for its own resolution"
            )
        model = self.get_model()
        side = model.forgery_tower.config.encoder.image_size
        processor = self.get_vision_tower().image_processor
        return pictures_of(images, wanted, side, self.config, processor, sizes)

    def save_pretrained(
        self, save_directory: str | PathLike, state_dict: dict | None = None, **options: Any
    ) -> None:
        """Write the whole model and, beside it, the skill; see
        :mod:`llava_forgery.hosts.llava_checkpoint`."""
        from llava_forgery.hosts.llava_checkpoint import save_full

        save_full(self, super().save_pretrained, save_directory, state_dict, **options)


def _placeholders(input_ids: torch.Tensor) -> list[int]:
    return count_placeholders(input_ids, FORGERY_TOKEN_INDEX)


def _images_of(input_ids: torch.Tensor) -> list[int]:
    return count_placeholders(input_ids, IMAGE_TOKEN_INDEX)


@functools.cache
def skilled_class(base: type) -> type:
    """The class of a model with the skill; of the same name, so that checkpoints say the same."""

    def with_images(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(
            self: Any,
            *args: Any,
            forgery_images: torch.Tensor | None = None,
            detection: KFDOutput | None = None,
            **kwargs: Any,
        ) -> Any:
            return self._call_with_skill(function, args, kwargs, forgery_images, detection)

        # transformers reads which inputs a model takes off the signature.
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
            for name in ("forgery_images", "detection")
        ]
        named = [p for p in parameters if p not in rest]
        call.__signature__ = signature.replace(parameters=[*named, *added, *rest])
        return call

    methods = {
        "forward": with_images(base.forward),
        "generate": with_images(base.generate),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (SkilledLlava, base), methods)


def has_skill(model: nn.Module) -> bool:
    """Whether a model of the ``llava`` package has the skill."""
    return isinstance(model, SkilledLlava)


def attach_to_llava(
    model: PreTrainedModel,
    forgery_tower: str | PathLike,
    fpl: ForgeryPromptLearner | FPLConfig | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Give a loaded model of the ``llava`` package the forgery skill.

    The detector is frozen, the FPL is trainable, the model's own weights are left as they are.

    Args:
        model: Such as ``LlavaLlamaForCausalLM``, with its weights.
        forgery_tower: The detector, ``kfd:DIR`` or DIR.
        fpl: A learner, or its configuration for a new one; by default a new ``lite`` one.
        seed: Of a new learner's weights.

    Returns:
        The same model; its ``forward`` and ``generate`` take ``forgery_images`` (N, 3, S, S) in
        [0, 1], one for each image of the prompts with placeholders, in their order; or none, where
        the detector reads the model's own vision tower (``train-kfd --host``).

    Raises:
        FileNotFoundError: The folder holds no detector.
        ValueError: It has the skill already, sizes do not fit, or a new learner is wanted where
            LLaVA's ``disable_torch_init`` was called.
    """
    if has_skill(model):
        raise ValueError("this model has the forgery skill already")
    if not hasattr(model, "get_model") or not hasattr(model, "get_vision_tower"):
        raise ValueError(
            f"{type(model).__name__} is no model of the llava package; use attach_forgery for "
            "those of transformers"
        )
    fingerprint = host_fingerprint(model)
    tower = KFDVisionTower(forgery_tower)
    layers, width = tower.config.num_layers, fingerprint["hidden_size"]
    if fpl is None:
        fpl = FPLConfig(hidden_size=width, num_layers=layers)
    if isinstance(fpl, FPLConfig):
        _check_initialisation()
        learner = ForgeryPromptLearner.from_config(replace(fpl, hidden_size=width), seed)
        learner.match_scale(model.get_input_embeddings().weight.detach().cpu())
    else:
        learner = fpl
    sizes = {"hidden_size": width, "num_layers": layers}
    for field, expected in sizes.items():
        if getattr(learner.config, field) != expected:
            raise ValueError(
                f"this FPL has {field} {getattr(learner.config, field)}, the model and the "
                f"detector need {expected}: it belongs to others"
            )
    _install(model, tower, learner)
    if isinstance(tower.kfd.encoder, HostEncoder):
        model._forgery_shared = LlavaSharedTower(model, tower.kfd)
    config = model.config
    config.mm_forgery_tower = f"{PREFIX}{tower.directory}"
    config.mm_forgery_projector_type = PROJECTOR_TYPE
    config.mm_forgery_fpl = learner.config.to_dict()
    config.mm_forgery_host = {"name_or_path": model.name_or_path, **fingerprint}
    return model


def _check_initialisation() -> None:
    """LLaVA's tools switch torch's initialisation off: new layers are then what memory holds."""
    if nn.Linear.reset_parameters.__module__ != nn.Linear.__module__:
        raise ValueError(
            "torch's initialisation of linear layers is switched off in this process (LLaVA's "
            "disable_torch_init), so a new FPL would begin with garbage; attach it before, or give "
            "a learner that is loaded"
        )


def detach_from_llava(model: PreTrainedModel) -> PreTrainedModel:
    """Take the skill off; the model is then as it was.

    Raises:
        ValueError: It has none.
    """
    if not has_skill(model):
        raise ValueError("this model has no forgery skill")
    inner = model.get_model()
    delattr(inner, TOWER)
    delattr(inner, PROJECTOR)
    for key in (*CONFIG_KEYS, TEMPLATE_KEY):
        if hasattr(model.config, key):
            delattr(model.config, key)
    model._forgery_shared = None
    model.__class__ = type(model).__mro__[2]
    return model


def _install(model: PreTrainedModel, tower: KFDVisionTower, learner: ForgeryPromptLearner) -> None:
    device = model.get_input_embeddings().weight.device
    inner = model.get_model()
    setattr(inner, TOWER, tower.to(device))
    setattr(inner, PROJECTOR, learner.to(device))
    model.__class__ = skilled_class(type(model))


def llava_lora_config(model: PreTrainedModel, settings: LoraSettings) -> LoraConfig:
    """peft's configuration with the language model's layers alone as the targets.

    A list of names would also hit the vision tower, which lies inside the language model here.

    Args:
        model: Of the ``llava`` package.
        settings: Sizes.

    Raises:
        ValueError: The language model has no such layers.
    """
    names = "|".join(settings.projections)
    pattern = rf"model\.layers\.\d+\..*\.({names})"
    if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
        raise ValueError(
            f"{type(model).__name__} has no layers named {names.replace('|', ', ')} in its "
            "language model; give LoraSettings(projections=...) its names"
        )
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=pattern,
        bias="none",
        task_type="CAUSAL_LM",
    )
