"""OpenAI's chat completions: what a request may hold, and its answers, whole or in a stream."""

import json
import secrets
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_forgery.qa.conversation import Message
from llava_forgery.serve.dialogues import Turn, TurnOptions, Turns
from llava_forgery.serve.errors import ApiError
from llava_forgery.serve.settings import Settings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageUrl(_Strict):
    """Where a picture is."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    """Not used: the detector sees faces in one size."""


class Part(_Strict):
    """Text or a picture."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class ChatMessage(_Strict):
    """One message."""

    role: Literal["user", "assistant"]
    content: str | list[Part]
    name: str | None = None
    refusal: None = None


class StreamOptions(_Strict):
    """What a stream holds beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class FaceOptions(_Strict):
    """Which face is talked about: no part of OpenAI's API."""

    face: int = Field(0, ge=0)
    """0 is the largest."""
    cropped: bool = False
    """The picture is a face crop already."""


class ChatRequest(_Strict):
    """A request; what is not here is refused, as it would not be heeded."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    """0 by default, unlike OpenAI's: the same question then gets the same answer."""
    top_p: float = Field(1.0, gt=0, le=1)
    stop: str | list[str] | None = None
    n: Literal[1] = 1
    user: str | None = None
    """Not used."""
    forgery: FaceOptions = FaceOptions()

    def options(self, settings: Settings, default: int) -> TurnOptions:
        """How the answer is to be written.

        Raises:
            ApiError: 400 for too many tokens, or stop texts that are none.
        """
        wanted = self.max_completion_tokens or self.max_tokens or default
        if wanted > settings.max_tokens:
            raise ApiError(
                400, f"at most {settings.max_tokens} tokens are written", "invalid", "max_tokens"
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or not all(0 < len(text) <= 200 for text in stop):
            raise ApiError(400, "expected up to 4 stop texts of 1 to 200 characters", "invalid",
                           "stop")  # fmt: skip
        return TurnOptions(wanted, self.temperature, self.top_p, tuple(stop))

    def dialogue(self, settings: Settings) -> tuple[str, Turns, str]:
        """The picture's address, the turns so far, and the question.

        Raises:
            ApiError: 400 where the messages are no such dialogue.
        """
        images, texts = [], []
        for i, message in enumerate(self.messages):
            if message.role != ("user", "assistant")[i % 2]:
                raise _wrong("messages must alternate, beginning with the user's")
            found, text = _parts(message)
            if found and i:
                raise _wrong("the picture belongs into the first message")
            images += found
            texts.append(text)
        if len(self.messages) % 2 == 0:
            raise _wrong("the last message must be the user's")
        if len(images) != 1:
            raise _wrong(
                f"expected one picture (image_url) in the first message, got {len(images)}"
            )
        if sum(map(len, texts)) > settings.max_prompt:
            raise _wrong(f"the dialogue is longer than {settings.max_prompt} characters, the limit")
        # The model may have written nothing; whoever asks must ask something.
        if not all(texts[::2]):
            raise _wrong("a question has no text")
        for text in filter(None, texts):
            try:
                Message("user", text)
            except ValueError as error:
                raise _wrong(str(error)[:300]) from None
        turns = tuple(zip(texts[0:-1:2], texts[1::2], strict=True))
        return images[0], turns, texts[-1]


def _parts(message: ChatMessage) -> tuple[list[str], str]:
    """Addresses of the pictures, and the text, without white space at its ends."""
    if isinstance(message.content, str):
        return [], message.content.strip()
    images, texts = [], []
    for part in message.content:
        value = part.text if part.type == "text" else part.image_url
        if value is None:
            raise _wrong(f"a part of type {part.type} has no {part.type}")
        if isinstance(value, ImageUrl):
            images.append(value.url)
        else:
            texts.append(value)
    return images, "\n".join(texts).strip()


def _wrong(text: str) -> ApiError:
    return ApiError(400, text, "invalid", "messages")


class Completion:
    """The answer to one request.

    Args:
        model: Its name.
        verdict: Of the face, as ``forgery`` beside the answer, which stays the model's own words.
    """

    def __init__(self, model: str, verdict: dict[str, Any]) -> None:
        self._verdict = verdict
        self._common = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, turn: Turn) -> dict[str, Any]:
        """The answer in one piece."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": turn.text, "refusal": None},
            "finish_reason": turn.finish_reason,
            "logprobs": None,
        }
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(turn),
            "forgery": self._verdict,
        }

    def first(self) -> str:
        """The stream's first event, with the verdict."""
        return self._event({"role": "assistant", "content": ""}, forgery=self._verdict)

    def piece(self, text: str) -> str:
        """A further piece of the answer."""
        return self._event({"content": text})

    def last(self, turn: Turn, usage: bool) -> str:
        """The stream's end."""
        events = self._event({}, turn.finish_reason)
        if usage:
            events += _sse({**self._common, "object": "chat.completion.chunk", "choices": [],
                            "usage": _usage(turn)})  # fmt: skip
        return events + "data: [DONE]\n\n"

    def _event(self, delta: dict, reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _sse(
            {**self._common, "object": "chat.completion.chunk", "choices": [choice], **more}
        )


def failed(error: ApiError) -> str:
    """The event of a stream that fails once it has begun."""
    return _sse(error.body())


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(turn: Turn) -> dict[str, Any]:
    return {
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.completion_tokens,
        "total_tokens": turn.prompt_tokens + turn.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": turn.reused_tokens},
    }
