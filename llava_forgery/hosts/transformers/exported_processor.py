"""The processor of an exported checkpoint: the host's own, with what the skill adds.

It is an instance of the host's processor class, so that all that class does is done as it does it.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    ProcessorMixin,
)
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images

from llava_forgery.constants import FORGERY_TOKEN
from llava_forgery.files import write_text
from llava_forgery.hosts.pictures import ClientPrompts
from llava_forgery.hosts.placement import WHOLE
from llava_forgery.hosts.transformers.chat import image_token_of, pair_placeholders
from llava_forgery.hosts.transformers.exported import (
    AUTO_MAP,
    PROCESSING,
    LlavaForgeryConfig,
    LlavaForgeryForConditionalGeneration,
    code_of,
)
from llava_forgery.hosts.transformers.processors import conventions_of, process_plainly
from llava_forgery.hosts.transformers.prompts import collate, process_sample
from llava_forgery.images import to_rgb


@dataclass(frozen=True)
class ForgerySettings:
    """What the skill adds to a host's processor."""

    n_forgery: int
    """n_f: placeholders behind each image."""
    image_size: int | None
    """S, side of the detector's square; None where it reads the host's own vision tower."""
    placement: str
    """``always``: prompts that show images and hold no placeholders get them. ``placeholders``:
    those stay the host's own."""
    behind: bool = False
    """Whether they stand right behind each image, as the model of an adapter trained with
    ``always`` puts them, or behind a line break, as prompts that write them have them."""
    crop: str = WHOLE
    """Whether the largest ``face`` is cut out of a picture for the detector, as training frames it,
    or the whole picture is padded to a square (``none``)."""


# It finds faces, and warns once.
_CLIENTS = ClientPrompts()


class LlavaForgeryProcessor(ProcessorMixin):
    """Made by :meth:`over` or ``from_pretrained``: an object of the host's processor class as well.

    Attributes:
        forgery: What the skill adds.
    """

    forgery: ForgerySettings
    _host_class: type[ProcessorMixin] | None = None

    @classmethod
    def over(cls, processor: ProcessorMixin, forgery: ForgerySettings) -> "LlavaForgeryProcessor":
        """A host's processor with the skill; the two share tokenizer and image processor.

        Args:
            processor: Its tokenizer knows ``<forgery>``.
            forgery: What the skill adds.
        """
        made = copy.copy(processor)
        made.__class__ = _over(type(processor))
        made.forgery = forgery
        made.chat_template = (
            getattr(processor, "chat_template", None)
            or processor.tokenizer.chat_template
            or conventions_of(processor).chat_template
        )
        return made

    def host_processor(self) -> ProcessorMixin:
        """The host's processor alone, as the skill's own functions take it."""
        made = copy.copy(self)
        made.__class__ = self._host_class
        del made.forgery
        return made

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any
    ) -> "LlavaForgeryProcessor":
        """:meth:`transformers.ProcessorMixin.from_pretrained`.

        Raises:
            ValueError: It is not an exported checkpoint's.
        """
        # Or transformers asks whether to run code, to learn which tokenizer the folder has.
        register_auto_classes()
        values, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        kind = getattr(transformers, str(values.get("host_processor_class")), None)
        if not (isinstance(kind, type) and issubclass(kind, ProcessorMixin)):
            raise ValueError(
                f"{pretrained_model_name_or_path} names no processor class of this transformers "
                f"(host_processor_class {values.get('host_processor_class')!r}); give a folder "
                "that `llava-forgery convert export-transformers` wrote"
            )
        processor = kind.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.over(processor, ForgerySettings(**values["forgery"]))

    def to_dict(self) -> dict[str, Any]:
        """The host's, and our keys."""
        return {
            **super().to_dict(),
            "auto_map": {"AutoProcessor": AUTO_MAP["AutoProcessor"]},
            "host_processor_class": self._host_class.__name__,
            "forgery": asdict(self.forgery),
        }

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> Any:
        """Also write the code that ``AutoProcessor`` finds this class by."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        write_text(Path(save_directory) / f"{PROCESSING}.py", code_of(LlavaForgeryProcessor))
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Nothing: transformers would copy the class's source into what is saved."""

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's, with placeholders where training has them: behind each image.

        Args:
            conversation: Messages, or several lists of them, as the host's processor takes them.
            args: As there.
            kwargs: As there.
        """
        one = isinstance(conversation[0], dict)
        placed = [self._place(messages) for messages in ([conversation] if one else conversation)]
        if conventions_of(self).process is not process_plainly and kwargs.get("tokenize"):
            asked = {"questions": [_first_question(messages) for messages in placed]}
            kwargs["processor_kwargs"] = {**(kwargs.get("processor_kwargs") or {}), **asked}
        text = super().apply_chat_template(placed[0] if one else placed, *args, **kwargs)
        if kwargs.get("tokenize"):
            return text
        paired = [self._pair(each) for each in ([text] if one else text)]
        return paired[0] if one else paired

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        questions: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """The host's inputs, with what the detector sees.

        Args:
            images: As the host's processor takes them; files and addresses too.
            text: B prompts, or one; images as the host's image token.
            videos: The host's; the skill says nothing of them.
            audio: Likewise.
            questions: What was asked first, where the host shows that to its vision tower; by
                default the text without its tokens.
            kwargs: As the host's processor takes them.

        Returns:
            What the host's processor gives; and where prompts hold placeholders, unless the
            detector reads the host's own vision tower, ``forgery_images`` (N, 3, S, S) uint8 of all
            images, with ``images_per_sample`` (B,) where a prompt shows more or less than one.
        """
        if text is None or isinstance(text, str):
            texts = [] if text is None else [text]
        else:
            texts = list(text)
        texts = [self._write_placeholders(self._pair(each)) for each in texts]
        if images is not None:
            images = self.image_processor.fetch_images(images)
        others = {"videos": videos, "audio": audio}
        kwargs.update({name: value for name, value in others.items() if value is not None})
        if images is not None and conventions_of(self).process is not process_plainly:
            batch = self._process_each(images, texts, questions, **kwargs)
        else:
            batch = super().__call__(
                images=images, text=texts[0] if isinstance(text, str) else texts or None, **kwargs
            )
        counts = [each.count(FORGERY_TOKEN) // self.forgery.n_forgery for each in texts]
        if images is not None and any(counts) and self.forgery.image_size is not None:
            pictures = [self._view(image) for image in make_flat_list_of_images(images)]
            batch["forgery_images"] = torch.stack(pictures)
            if set(counts) != {1}:
                batch["images_per_sample"] = torch.tensor(counts)
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._host_class, self.__dict__)

    def _place(self, messages: Any) -> list[dict[str, Any]]:
        """Messages with a text of placeholders behind each image."""
        held = any(FORGERY_TOKEN in text for message in messages for text in _texts(message))
        if held or self.forgery.placement != "always" or self.forgery.behind:
            return list(messages)
        placeholders = FORGERY_TOKEN * self.forgery.n_forgery + "\n"
        placed = []
        for message in messages:
            parts: Any = message["content"]
            if not isinstance(parts, str):
                parts, given = [], parts
                for part in given:
                    behind = parts and parts[-1].get("text") == placeholders
                    if behind and part.get("type") == "text":
                        # One part with the question, as templates may part them.
                        parts[-1] = {**part, "text": placeholders + part["text"]}
                        continue
                    parts.append(part)
                    if part.get("type") == "image":
                        parts.append({"type": "text", "text": placeholders})
            placed.append({**message, "content": parts})
        return placed

    def _pair(self, text: str) -> str:
        return pair_placeholders(text, image_token_of(self))

    def _write_placeholders(self, text: str) -> str:
        if self.forgery.placement != "always" or FORGERY_TOKEN in text:
            return text
        image = image_token_of(self) + self._closing
        return text.replace(image, image + FORGERY_TOKEN * self.forgery.n_forgery)

    @functools.cached_property
    def _closing(self) -> str:
        """What the template writes behind an image to close it, mostly nothing."""
        probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
        text = super().apply_chat_template(probe, tokenize=False)
        return text.split(image_token_of(self))[-1].split("?")[0].strip()

    def _process_each(
        self, images: Any, texts: list[str], questions: Sequence[str] | None, **kwargs: Any
    ) -> BatchFeature:
        """As training does it, for hosts whose processor does it otherwise."""
        host, flat, samples = self.host_processor(), iter(make_flat_list_of_images(images)), []
        image = image_token_of(self)
        for i, text in enumerate(texts):
            bare = text.replace(image, "").replace(FORGERY_TOKEN, "").strip()
            shown = [next(flat) for _ in range(text.count(image))]
            asked = bare if questions is None else questions[i]
            samples.append(process_sample(host, text, shown, asked))
        side = kwargs.get("padding_side", self.tokenizer.padding_side)
        return BatchFeature(collate(samples, self.tokenizer.pad_token_id, side))

    def _view(self, image: Any) -> torch.Tensor:
        """What the detector sees of a picture: (3, S, S) uint8."""
        pixels = to_rgb(image if isinstance(image, Image.Image) else to_pil_image(image))
        square = _CLIENTS.square(pixels, self.forgery.image_size, self.forgery.crop)
        return torch.from_numpy(square).permute(2, 0, 1)


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _first_question(messages: Sequence[dict[str, Any]]) -> str:
    asked = next((m for m in messages if m["role"] == "user"), {"content": ""})
    return "".join(_texts(asked)).replace(FORGERY_TOKEN, "").strip()


def register_auto_classes() -> None:
    """Make exported checkpoints known to transformers' auto classes, without remote code.

    Doing so twice changes nothing.
    """
    AutoConfig.register(LlavaForgeryConfig.model_type, LlavaForgeryConfig, exist_ok=True)
    AutoModelForImageTextToText.register(
        LlavaForgeryConfig, LlavaForgeryForConditionalGeneration, exist_ok=True
    )
    AutoProcessor.register(LlavaForgeryConfig, LlavaForgeryProcessor, exist_ok=True)


@functools.cache
def _over(host_class: type[ProcessorMixin]) -> type[LlavaForgeryProcessor]:
    bases = (LlavaForgeryProcessor, host_class)
    return type(LlavaForgeryProcessor.__name__, bases, {"_host_class": host_class})


def _restored(host_class: type[ProcessorMixin], state: dict[str, Any]) -> LlavaForgeryProcessor:
    """What was pickled: its class is made when it is needed, and has no name."""
    made = object.__new__(_over(host_class))
    made.__dict__.update(state)
    return made
