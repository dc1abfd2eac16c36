"""Verdicts and dialogues from a model of the ``llava`` package with the skill.

Prompts go through LLaVA's ``conv_templates`` and images through its ``process_images``. Faces are
judged one after the other, and every turn of a dialogue is computed anew: LLaVA's ``generate``
takes no cache.
"""

import logging
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from llava_forgery.call_state import lock_of
from llava_forgery.faces.detect import FaceDetector
from llava_forgery.hosts.llava.loading import load_llava
from llava_forgery.hosts.llava.names import TEMPLATE_KEY
from llava_forgery.hosts.llava.prompts import (
    TEMPLATE,
    dialogue_prompt,
    paper_template,
    tokenizer_forgery_token,
)
from llava_forgery.hosts.llava.register import import_llava
from llava_forgery.hosts.transformers.likelihood import first_token_p_yes
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor, Photograph
from llava_forgery.kfd.detector import KFDOutput, KnowledgeGuidedForgeryDetector
from llava_forgery.qa.build import detection_prompt
from llava_forgery.qa.conversation import Message
from llava_forgery.tensors import from_bytes

logger = logging.getLogger(__name__)

# The one that LLaVA 1.5 was tuned with, and that LLaVA's training scripts name.
DEFAULT_TEMPLATE = "v1"
NOTHING_SAID = "(The model gave no answer.)"


class LlavaSpeaker:
    """A model of the ``llava`` package, its tokenizer and its template: what prompts are made of.

    Args:
        model: With the skill, in eval mode.
        tokenizer: Its tokenizer.
        template: Name in LLaVA's ``conv_templates``; by default the one that the skill was
            trained with, or else ``v1``.

    Raises:
        ValueError: LLaVA has no such template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        trained = getattr(model.config, TEMPLATE_KEY, None)
        name = template or trained or DEFAULT_TEMPLATE
        if not (template or trained):
            logger.warning(
                "the model's configuration names no conversation template: %s is taken", name
            )
        if trained and name != trained:
            logger.warning("the skill was trained with the template %r, not %r", trained, name)
        known = import_llava("a prompt", "llava.conversation").conv_templates
        if name != TEMPLATE and name not in known:
            raise ValueError(
                f"{name!r} is none of LLaVA's conversation templates: {', '.join(known)}, "
                f"{TEMPLATE}"
            )
        self.template = paper_template() if name == TEMPLATE else known[name]

    def prompt(self, turns: Sequence[str]) -> str:
        """The text of a dialogue; see :func:`dialogue_prompt`."""
        tagged = bool(getattr(self.model.config, "mm_use_im_start_end", False))
        return dialogue_prompt(self.template, turns, self.model.n_forgery, tagged)

    def tokens(self, text: str) -> list[int]:
        """Ids, with -200 for the image and -201 for each placeholder."""
        return tokenizer_forgery_token(text, self.tokenizer)

    def inputs(self, face: np.ndarray, detection: KFDOutput) -> dict[str, Any]:
        """What ``forward`` and ``generate`` take beside the ids of one prompt.

        Args:
            face: (S, S, 3) uint8.
            detection: Of this face, batch of 1.
        """
        process = import_llava("an image", "llava.mm_utils").process_images
        picture = Image.fromarray(face)
        model = self.model
        images = process([picture], model.get_vision_tower().image_processor, model.config)
        if isinstance(images, torch.Tensor):
            images = images.to(model.device, model.dtype)
        else:
            images = [image.to(model.device, model.dtype) for image in images]
        return {"images": images, "image_sizes": [picture.size], "detection": detection}

    def ids(self, tokens: Sequence[int]) -> torch.Tensor:
        """(1, T) on the model's device."""
        return torch.tensor([list(tokens)], device=self.model.device)

    def endings(self) -> dict[str, Any]:
        """What ends an answer: the template's separator, where it is no special token."""
        mark = self.template.sep2 if self.template.sep2 else self.template.sep
        special = mark is not None and mark in self.tokenizer.all_special_tokens
        if not mark or special or not mark.strip():
            return {}
        return {"stop_strings": [mark], "tokenizer": self.tokenizer}

    def decode(self, ids: torch.Tensor) -> str:
        """The answer of new tokens (T,)."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        for mark in self.endings().get("stop_strings", []):
            text = text.removesuffix(mark).strip()
        return text

    def candidates(self, question: str) -> tuple[list[int], tuple[int, int]]:
        """The prompt's ids, and the tokens that tell "Yes" from "No" behind them.

        Some tokenizers begin both words with the same token, such as a space: it then joins the
        prompt, as every answer begins with it.

        Raises:
            ValueError: The answers do not continue the prompt's tokens, or cannot be told apart.
        """
        head = self.tokens(self.prompt([question]))
        found = []
        for word in ("Yes", "No"):
            said = []
            for answer in (word, f"{word}.", f"{word}, it"):
                ids = self.tokens(self.prompt([question, answer]))
                if ids[: len(head)] != head:
                    raise ValueError(
                        f"the answer {answer!r} does not continue the tokens of the prompt, which "
                        f"end with {head[-5:]}: this tokenizer and template cannot tell P(yes)"
                    )
                said.append(ids[len(head) :])
            found.append(_common(said))
        shared = _common(found)
        rests = [ids[len(shared) :] for ids in found]
        if not all(rests):
            raise ValueError(f"Yes and No cannot be told apart by their first tokens: {found}")
        return [*head, *shared], (rests[0][0], rests[1][0])


def _common(sequences: Sequence[Sequence[int]]) -> list[int]:
    """What all sequences begin with."""
    shared = []
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return shared


class LlavaForgeryPredictor(ForgeryPredictor):
    """Judges photographs with a model of the ``llava`` package.

    Args:
        model: With the skill.
        tokenizer: Its tokenizer.
        template: Name in LLaVA's ``conv_templates``; see :class:`LlavaSpeaker`.
        detector: Finds faces; dlib's, when it is first needed, if None.
        max_new_tokens: Most tokens of an answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        detector: FaceDetector | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__(model, detector, max_new_tokens)
        self.speaker = LlavaSpeaker(model, tokenizer, template)

    @classmethod
    def from_pretrained(
        cls,
        adapter_dir: str | PathLike,
        host: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        template: str | None = None,
        allow_download: bool = False,
    ) -> "LlavaForgeryPredictor":
        """Load an adapter or a whole model in LLaVA's layout.

        Args:
            adapter_dir: The folder.
            host: Folder or hub name of the adapter's host; by default the one it names.
            device: Where to; a GPU if there is one by default.
            dtype: Of the host's weights.
            template: See :class:`LlavaSpeaker`.

            allow_download: Whether what the folder's files name may be downloaded.

        Raises:
            FileNotFoundError: Adapter or host is missing.
            ImportError: The ``llava`` package is not installed.
            ValueError: The folder is none in LLaVA's layout, or does not fit the host.
        """
        tokenizer, model = load_llava(
            adapter_dir, host, dtype=dtype, device=device, allow_download=allow_download
        )
        return cls(model, tokenizer, template)

    @property
    def kfd(self) -> KnowledgeGuidedForgeryDetector:
        """The detector."""
        return self.vlm.get_model().forgery_tower.kfd

    @torch.inference_mode()
    def _predict_scores(self, faces: Sequence[FaceInput]) -> list[tuple[float, float]]:
        detection = self._detect(faces)
        p_yes = []
        for i, face in enumerate(faces):
            own = _one(detection, i)
            tokens, candidates = self.speaker.candidates(detection_prompt(float(own.score[0])))
            inputs = self.speaker.inputs(face.image, own)
            logits = self.vlm(input_ids=self.speaker.ids(tokens), **inputs).logits[:, -1]
            p_yes += first_token_p_yes(logits, candidates)
        return list(zip(detection.score.tolist(), p_yes, strict=True))

    def _answer(
        self, faces: Sequence[FaceInput], detection: KFDOutput
    ) -> tuple[list[float], list[str]]:
        p_yes, answers = [], []
        for i, face in enumerate(faces):
            own = _one(detection, i)
            tokens, candidates = self.speaker.candidates(detection_prompt(float(own.score[0])))
            output = self.vlm.generate(
                self.speaker.ids(tokens),
                **self.speaker.inputs(face.image, own),
                **self.speaker.endings(),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            p_yes += first_token_p_yes(output.logits[0], candidates)
            answers.append(self.speaker.decode(output.sequences[0]))
        return p_yes, answers

    def dialogue(
        self, image: Photograph, cropped: bool = False, reuse_cache: bool = False
    ) -> "LlavaDialogue":
        """A dialogue about the largest face; its first question is the detection prompt's.

        Raises:
            ValueError: As :meth:`predict`; or a cache is asked for.
        """
        if reuse_cache:
            raise ValueError("LLaVA's generate takes no cache: every turn is computed anew")
        face = self.largest_face(image, cropped)
        return LlavaDialogue(self.vlm, self.speaker, face.image, self.max_new_tokens)


class LlavaDialogue:
    """A dialogue about one face; the detector looks at it once.

    Attributes:
        score: The detector's score of the face.
        messages: What was said so far.
    """

    def __init__(
        self, model: PreTrainedModel, speaker: LlavaSpeaker, face: np.ndarray, max_new_tokens: int
    ) -> None:
        self._model, self._speaker, self._face = model, speaker, face
        self.max_new_tokens = max_new_tokens
        self._detection = model.detect(from_bytes(face)[None])
        self.score = float(self._detection.score[0])
        self.messages: tuple[Message, ...] = ()

    @torch.inference_mode()
    def ask(self, text: str, streamer: BaseStreamer | None = None) -> str:
        """Ask a question and get the answer; both join the dialogue. Threads take turns.

        Args:
            text: The question; the first is put behind task description and detector's result.
            streamer: Receives the answer's tokens as they are written.

        Raises:
            ValueError: An empty question.
        """
        text = text.strip()
        if not text:
            raise ValueError("the question is empty")
        with lock_of(self):
            return self._ask(text, streamer)

    def _ask(self, text: str, streamer: BaseStreamer | None) -> str:
        question = text if self.messages else detection_prompt(self.score, question=text)
        messages = (*self.messages, Message("user", question))
        speaker = self._speaker
        tokens = speaker.tokens(speaker.prompt([message.text for message in messages]))
        output = self._model.generate(
            speaker.ids(tokens),
            **speaker.inputs(self._face, self._detection),
            **speaker.endings(),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            streamer=streamer,
        )
        answer = speaker.decode(output[0]) or NOTHING_SAID
        self.messages = (*messages, Message("assistant", answer))
        return answer


def _one(detection: KFDOutput, i: int) -> KFDOutput:
    # Its own class: it may hold the host's features of the image.
    return type(detection)(**{name: value[i : i + 1] for name, value in vars(detection).items()})
