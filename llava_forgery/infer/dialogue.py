"""Talking about one face, over several turns."""

import numpy as np
import torch
from PIL import Image

from llava_forgery.hosts.transformers_vlm import ForgeryVLM
from llava_forgery.qa.build import detection_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.qa.render import encode

NOTHING_SAID = "(The model gave no answer.)"


class Dialogue:
    """A dialogue about one face; the detector looks at it once.

    Made by ``ForgeryPredictor.dialogue``.

    Args:
        vlm: In eval mode.
        image: (S, S, 3) uint8, the face.
        max_new_tokens: Most tokens of an answer.

    Attributes:
        score: The detector's score of the face.
        messages: What was said so far.
    """

    def __init__(self, vlm: ForgeryVLM, image: np.ndarray, max_new_tokens: int = 64) -> None:
        self.vlm, self.image, self.max_new_tokens = vlm, image, max_new_tokens
        pixels = torch.from_numpy(image).permute(2, 0, 1).float()[None] / 255
        self._detection = vlm.detect(pixels)
        self.score = float(self._detection.score[0])
        self.messages: tuple[Message, ...] = ()

    @torch.inference_mode()
    def ask(self, text: str) -> str:
        """Ask a question and get the answer; both join the dialogue.

        The first question is put behind the task description and the detector's result, as in
        training.

        Args:
            text: The question.

        Raises:
            ValueError: An empty question.
        """
        text = text.strip()
        if not text:
            raise ValueError("the question is empty")
        first = not self.messages
        question = detection_prompt(self.score, question=text) if first else text
        messages = (*self.messages, Message("user", question))
        encoded = encode(
            Conversation(messages, label=None),
            self.vlm.processor,
            images=[Image.fromarray(self.image)],
            n_forgery_tokens=self.vlm.n_forgery,
        )
        inputs = {name: tensor[None].to(self.vlm.device) for name, tensor in encoded.items()}
        length = inputs["input_ids"].shape[1]
        ids = self.vlm.generate(
            detection=self._detection,
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
        )
        answer = self.vlm.processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
        # A host may end its turn at once; the next prompt needs words in every turn.
        answer = answer.strip() or NOTHING_SAID
        self.messages = (*messages, Message("assistant", answer))
        return answer
