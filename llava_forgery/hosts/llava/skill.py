"""Methods of a model of the ``llava`` package with the forgery skill: E_forgery in its prompts.

Source: LVLM-DFD, sections 3.2 and 3.3.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch import nn

from llava_forgery.call_state import in_call, of_call
from llava_forgery.constants import IGNORE_INDEX
from llava_forgery.hosts.families import exclusive
from llava_forgery.hosts.kv_cache import add_keywords, takes_cache
from llava_forgery.hosts.llava.hooks import (
    FORGERY_TOKEN_INDEX,
    IMAGE_TOKEN_INDEX,
    NumberedHooks,
)
from llava_forgery.hosts.llava.images import pictures_of
from llava_forgery.hosts.llava.names import CROP_KEY, PLACEMENT_KEY
from llava_forgery.hosts.llava.saving import save_full
from llava_forgery.hosts.llava.shared_tower import LlavaSharedTower
from llava_forgery.hosts.pictures import ClientPrompts
from llava_forgery.hosts.placeholder import count_placeholders
from llava_forgery.hosts.placement import PLACEHOLDERS, WHOLE, Expansion, is_padded_left
from llava_forgery.hosts.projector import TrainedProjector
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector

# Owner, in call_state's sense, of the list that receives a call's labels, placed by LLaVA between
# the embeddings of images; the model then computes no loss of its own.
EXPANDED_LABELS = object()
# Owner of True while ``generate`` runs.
GENERATING = object()


class LlavaForgeryMixin:
    """Mixin for models of the ``llava`` package; :func:`forgery_class` makes the class.

    Threads and asyncio tasks may call it concurrently; the state of a call is separate.
    """

    _forgery_shared: LlavaSharedTower | None = None
    _forgery_projector: TrainedProjector | None = None
    _forgery_clients: ClientPrompts

    @property
    def n_forgery(self) -> int:
        """n_f: number of placeholders that a prompt must hold for each of its images."""
        return self.get_model().forgery_projector.config.n_forgery

    @property
    def placement(self) -> str:
        """Placement of E_forgery; see :mod:`llava_forgery.hosts.placement`."""
        return getattr(self.config, PLACEMENT_KEY, PLACEHOLDERS)

    @property
    def crop(self) -> str:
        """Whether faces are cut out of pictures that are given without ``forgery_images``."""
        return getattr(self.config, CROP_KEY, WHOLE)

    @property
    def takes_forgery_images(self) -> bool:
        """Whether calls take ``forgery_images``. A detector on the model's own vision tower reads
        ``images``, and each image is encoded once."""
        return self._forgery_shared is None

    @torch.no_grad()
    def detect(self, forgery_images: torch.Tensor) -> KFDOutput:
        """The detector's output for images (N, 3, S, S) in [0, 1].

        If it reads the model's tower, the output keeps the tower's features: passed as
        ``detection``, it saves the model a second encoding.
        """
        if self._forgery_shared is not None:
            return self._forgery_shared.detect(forgery_images)
        return self.get_model().forgery_tower(forgery_images)

    @contextmanager
    def detector_alone(self) -> Iterator[KnowledgeGuidedForgeryDetector]:
        """The detector for calls without the model, even if it reads the model's tower."""
        shared = self._forgery_shared
        if shared is not None:
            shared.check_once()
        with nullcontext() if shared is None else shared.attached():
            yield self.get_model().forgery_tower.kfd

    def prepare_inputs_labels_for_multimodal(self, *args: Any, **kwargs: Any) -> Any:
        """LLaVA's own, which silently cuts at ``tokenizer_model_max_length``, which must not affect
        E_forgery, and pads on the right, from which ``generate`` cannot continue.

        Raises:
            ValueError: E_forgery was cut off.
        """
        prepared = super().prepare_inputs_labels_for_multimodal(*args, **kwargs)
        if of_call(GENERATING):
            prepared = _padded_in_front(prepared)
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        embeds = prepared[4]
        cut = embeds is not None and limit is not None and embeds.shape[1] >= limit
        hooks: NumberedHooks | None = of_call(self)
        if cut and hooks is not None:
            self._check_cut(hooks, embeds, limit)
        if (expanded := of_call(EXPANDED_LABELS)) is not None:
            *others, labels = prepared
            expanded.append(labels)
            return (*others, None)
        return prepared

    def _check_cut(self, hooks: NumberedHooks, embeds: torch.Tensor, limit: int) -> None:
        for sample, vectors in enumerate(hooks.samples()):
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
        self._place(bound, name)
        input_ids = given.get(name)
        if forgery_images is not None and detection is not None:
            raise ValueError("give either forgery_images or detection, not both")
        shared = self._forgery_shared
        if shared is not None and forgery_images is not None:
            raise ValueError(
                "this detector reads the model's own vision tower: give only images, no "
                "forgery_images"
            )
        shown = forgery_images if detection is None else detection.class_logits
        placeholders = [0] if input_ids is None else _placeholders(input_ids)
        if not any(placeholders):
            if shown is not None and len(shown):
                raise ValueError(
                    f"{len(shown)} forgery images are given, but no prompt holds a forgery "
                    "placeholder; make prompts with llava_forgery.hosts.llava.prompts"
                )
            with self._idle_learner(input_ids, given.get("images")):
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
        # Looked up in each call, as resizing and peft's modules_to_save replace it.
        hooks = NumberedHooks(self.get_input_embeddings(), FORGERY_TOKEN_INDEX)
        given[name] = hooks.number(input_ids)
        if (labels := given.get("labels")) is not None:
            given["labels"] = labels.masked_fill(labels == FORGERY_TOKEN_INDEX, IGNORE_INDEX)
        try:
            with encoded, in_call(self, hooks), hooks.use(rows, placeholders):
                return function(*bound.args, **bound.kwargs)
        finally:
            hooks.remove()

    def _place(self, bound: inspect.BoundArguments, name: str) -> None:
        """Insert placeholders after the images of prompts without any, if the configuration says
        ``always``; ids, mask and labels of the call become longer."""
        given = bound.arguments
        ids = given.get(name)
        # A single token continues a prompt on its cache.
        if ids is None or ids.shape[1] == 1:
            return
        ends = ids == IMAGE_TOKEN_INDEX
        ends &= ~(ids == FORGERY_TOKEN_INDEX).any(dim=1, keepdim=True)
        if not bool(ends.any()):
            return
        if self.placement == PLACEHOLDERS:
            self._forgery_clients.tell_unused(self)
            return
        rest = [n for n, p in bound.signature.parameters.items() if p.kind is p.VAR_KEYWORD]
        others = given.get(rest[0], {}) if rest else {}
        holder = given if "attention_mask" in bound.signature.parameters else others
        mask = holder.get("attention_mask")
        moved = Expansion.behind(ends, self.n_forgery, is_padded_left(mask, of_call(GENERATING)))
        given[name] = moved.move(ids, 0, FORGERY_TOKEN_INDEX)
        if (labels := given.get("labels")) is not None:
            given["labels"] = moved.move(labels, IGNORE_INDEX, IGNORE_INDEX)
        if (mask := moved.mask(mask)) is not None:
            holder["attention_mask"] = mask
            if holder is others:
                given[rest[0]] = others

    @contextmanager
    def _idle_learner(self, input_ids: torch.Tensor | None, images: Any) -> Iterator[None]:
        """Run the FPL in a training step on general data, with gradients of zero.

        Processes that train together exchange gradients, under ZeRO-3 also weights, in the order in
        which each computes them, so all must run the same modules in the same order. The FPL
        therefore runs first, as for placeholders, and is tied to the input embeddings, so that its
        gradients come last.
        """
        if input_ids is None or not (self.training and torch.is_grad_enabled()):
            yield
            return
        encoded = nullcontext()
        if self._forgery_shared is not None and images is not None:
            _, encoded = self._forgery_shared.prepare(images, [0], None)
        zero = self.get_model().forgery_projector.idle(input_ids.device)

        def add(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            return output + zero.to(output.device, output.dtype)

        handle = self.get_input_embeddings().register_forward_hook(add)
        try:
            with encoded:
                yield
        finally:
            handle.remove()

    def _check_prompts(
        self, placeholders: Sequence[int], counts: Sequence[int], images: Any
    ) -> list[int]:
        """Indices of the images for the detector."""
        wanted, first = [], 0
        for sample, (have, shown) in enumerate(zip(placeholders, counts, strict=True)):
            if have and not shown:
                raise ValueError(
                    f"sample {sample} has {have} forgery placeholders but no <image>; begin its "
                    "first question with llava_forgery.hosts.llava.prompts.forgery_prefix"
                )
            if have and have != shown * self.n_forgery:
                raise ValueError(
                    f"sample {sample} has {have} forgery placeholders, expected "
                    f"{shown * self.n_forgery}: {self.n_forgery} for each of its {shown} images"
                )
            if have:
                wanted.extend(range(first, first + shown))
            # A sample without an image has an empty one, as in LLaVA's data sets.
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
        side = self.get_model().forgery_tower.config.encoder.image_size
        processor = self.get_vision_tower().image_processor
        self._forgery_clients.tell_derived()
        pictures = pictures_of(images, wanted, self.config, processor, sizes)
        return self._forgery_clients.frame(pictures, side, self.crop)

    def save_pretrained(
        self, save_directory: str | PathLike, state_dict: dict | None = None, **options: Any
    ) -> None:
        """Write the whole model and the skill; see
        :mod:`llava_forgery.hosts.llava.checkpoint`."""
        save_full(self, super().save_pretrained, save_directory, state_dict, **options)


def _padded_in_front(prepared: tuple) -> tuple:
    """Move LLaVA's padding to the left, as ``generate`` needs it; positions follow the mask."""
    ids, _, mask, cache, embeds, labels = prepared
    if mask is None or embeds is None or bool(mask[:, -1].all()):
        return prepared
    surplus = (~mask.bool()).sum(dim=1).tolist()
    mask, embeds = (
        torch.stack([row.roll(n, 0) for row, n in zip(tensor, surplus, strict=True)])
        for tensor in (mask, embeds)
    )
    return ids, None, mask, cache, embeds, labels


def _placeholders(input_ids: torch.Tensor) -> list[int]:
    return count_placeholders(input_ids, FORGERY_TOKEN_INDEX)


def _images_of(input_ids: torch.Tensor) -> list[int]:
    return count_placeholders(input_ids, IMAGE_TOKEN_INDEX)


@functools.cache
def forgery_class(base: type) -> type:
    """The class of a model with the skill, with the same name, so that checkpoints are the same."""

    def with_images(function: Callable[..., Any], generates: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(
            self: Any,
            *args: Any,
            forgery_images: torch.Tensor | None = None,
            detection: KFDOutput | None = None,
            **kwargs: Any,
        ) -> Any:
            with exclusive(self), in_call(GENERATING, generates):
                return self._call_with_skill(function, args, kwargs, forgery_images, detection)

        return add_keywords(call, function, "forgery_images", "detection")

    methods = {
        "forward": with_images(takes_cache(base.forward), False),
        "generate": with_images(base.generate, True),
        "prepare_inputs_for_generation": takes_cache(base.prepare_inputs_for_generation),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (LlavaForgeryMixin, base), methods)


def has_forgery_adapter(model: nn.Module) -> bool:
    """Whether a model of the ``llava`` package has the skill."""
    return isinstance(model, LlavaForgeryMixin)
