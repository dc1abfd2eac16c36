"""Turns of dialogues on a thread of their own; those that go on keep their caches for a while."""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from llava_forgery.infer.dialogue import (
    NOTHING_SAID,
    Dialogue,
    encode_turn,
    messages_of,
    with_question,
)
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.serve.engine import Busy

logger = logging.getLogger(__name__)

Turns = tuple[tuple[str, str], ...]
"""Questions and their answers."""


@dataclass(frozen=True)
class TurnOptions:
    """How one answer is written."""

    max_tokens: int = 64
    """Most tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Share of the probability from which tokens are drawn."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""

    def generation(self) -> dict[str, Any]:
        """Arguments of ``generate``."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_tokens}
        if self.temperature > 0:
            chosen |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
            # The host's own limit on how many tokens are drawn from is none of OpenAI's.
            chosen |= {"top_k": 0}
        return chosen


@dataclass(frozen=True)
class Turn:
    """What came of one question."""

    text: str
    """The answer as the model wrote it, without margins; "" where it wrote nothing."""
    finish_reason: str
    """``stop``, or ``length`` where ``max_tokens`` were written."""
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    """Tokens of the prompt that were not computed again."""


class _Ended(Exception):
    """Nothing more is to be written: a stop text came, or nobody listens."""


class AnswerStream(BaseStreamer):
    """From tokens as they are written to text that never has to be taken back.

    Args:
        decode: The text of new tokens (T,).
        stop: Texts before which the answer ends.
        on_text: Receives each further piece of the answer; together they are ``text``.
        gone: Whether nobody listens any more.

    Attributes:
        text: The answer so far, without white space at its ends.
    """

    def __init__(
        self,
        decode: Callable[[torch.Tensor], str],
        stop: Sequence[str],
        on_text: Callable[[str], None],
        gone: Callable[[], bool],
    ) -> None:
        self._decode, self._stop, self._on_text, self._gone = decode, stop, on_text, gone
        self._ids: list[int] = []
        self._given = 0
        self._prompt_seen = False
        self.text = ""

    @property
    def count(self) -> int:
        """Tokens that were written."""
        return len(self._ids)

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then one token after the other; see transformers.

        Raises:
            _Ended: To end the host's ``generate``.
        """
        if self._gone():
            raise _Ended
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        if self._take(self._decode(torch.tensor(self._ids)), final=False):
            raise _Ended

    def end(self) -> None:
        """Give out what was held back."""
        self._take(self._decode(torch.tensor(self._ids, dtype=torch.long)), final=True)

    def _take(self, text: str, final: bool) -> bool:
        """Give out what is certain of the answer; whether it ended with a stop text."""
        text = text.strip()
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            text = text[: min(ends)].rstrip()
        elif not final:
            text = self._certain(text)
        if len(text) > self._given:
            self.text = text
            self._on_text(text[self._given :])
            self._given = len(text)
        return bool(ends)

    def _certain(self, text: str) -> str:
        """Without a half-written character, the beginning of a stop text, and white space."""
        text = text.rstrip("\ufffd")
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:length]):
                    held = length
                    break
        return text[: len(text) - held].rstrip()


class Dialogues:
    """Dialogues of one predictor, which clients hold and send as a whole each time.

    The dialogue that a client goes on with is found by the face and what was said, so that its
    turn is computed from the cache; of others the earlier turns are computed anew. The least
    recently used cache is dropped first.

    Args:
        predictor: Of the model.
        keep: Dialogues whose caches are kept.
        queue: Most turns that wait.
    """

    def __init__(self, predictor: ForgeryPredictor, keep: int = 8, queue: int = 32) -> None:
        self._predictor, self._keep, self._queue = predictor, keep, queue
        self._kept: OrderedDict[str, Dialogue] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting = 0
        self._seconds = 3.0
        # One after the other: two answers at once take twice as long each.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dialogue")

    def __len__(self) -> int:
        return len(self._kept)

    def ask(
        self,
        face: FaceInput,
        turns: Turns,
        question: str,
        options: TurnOptions,
        on_text: Callable[[str], None] = lambda text: None,
        gone: Callable[[], bool] = lambda: False,
    ) -> Future[Turn]:
        """Put a question.

        Args:
            face: What is talked about.
            turns: What was said before.
            question: The next one.
            options: How the answer is written.
            on_text: Receives the answer piece by piece, in the dialogues' thread.
            gone: Asked at every token; once it is True the answer is broken off.

        Raises:
            Busy: Too many wait.
        """
        with self._lock:
            if self._waiting >= self._queue:
                raise Busy(f"{self._waiting} questions wait already", self._waiting * self._seconds)
            self._waiting += 1
        future = self._pool.submit(self._ask, face, turns, question, options, on_text, gone)
        future.add_done_callback(self._leave)
        return future

    def check_length(
        self, face: FaceInput, score: float, turns: Turns, question: str, options: TurnOptions
    ) -> None:
        """Refuse what :meth:`ask` would fail at; any thread may call.

        Raises:
            PromptTooLong: Dialogue and answer are longer than the language model reads.
        """
        messages = with_question(score, messages_of(score, _told(turns)), question)
        encode_turn(self._predictor.vlm, messages, face.image, options.max_tokens)

    def close(self) -> None:
        """Finish what waits, and end."""
        self._pool.shutdown()

    def _leave(self, future: Future) -> None:
        with self._lock:
            self._waiting -= 1

    def _ask(
        self,
        face: FaceInput,
        turns: Turns,
        question: str,
        options: TurnOptions,
        on_text: Callable[[str], None],
        gone: Callable[[], bool],
    ) -> Turn:
        dialogue = self._kept.pop(_key(face, turns), None)
        if dialogue is None:
            dialogue = self._predictor.dialogue(face.image, cropped=True)
            dialogue.recall(_told(turns))
        stream = AnswerStream(dialogue.vlm.prompts.decode, options.stop, on_text, gone)
        try:
            dialogue.ask(
                question,
                stream,
                **options.generation(),
            )
        except _Ended:
            # Broken off: the host's cache cannot be gone on from.
            return self._turn(stream, "stop", dialogue)
        self._kept[_key(face, (*turns, (question, stream.text)))] = dialogue
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        full = stream.count >= options.max_tokens
        return self._turn(stream, "length" if full else "stop", dialogue)

    @staticmethod
    def _turn(stream: AnswerStream, reason: str, dialogue: Dialogue) -> Turn:
        tokens = dialogue.prompt_tokens, stream.count, dialogue.reused_tokens
        return Turn(stream.text, reason, *tokens)


def _told(turns: Turns) -> list[tuple[str, str]]:
    return [(asked, said or NOTHING_SAID) for asked, said in turns]


def _key(face: FaceInput, turns: Turns) -> str:
    said = "".join(f"{len(text)}:{text}" for turn in turns for text in turn)
    return hashlib.sha256(face.image.tobytes() + said.encode()).hexdigest()
