"""The skill as a model of lmms-eval 0.7: ``--model llava_forgery --model_args adapter=DIR``.

There are two interfaces, as in lmms-eval: the simple one gets a text and the pictures, the chat one
messages. Pictures are judged as usual: by the largest face, or as a whole.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava_forgery.constants import IMAGE_TOKEN
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.integrations.lmms_eval.answering import (
    Answer,
    Question,
    Settings,
    answer,
    likelihood,
)
from llava_forgery.integrations.lmms_eval.protocol import read_transcript, write_report
from llava_forgery.optional import require
from llava_forgery.progress import progress
from llava_forgery.qa.conversation import ROLES, Message

FEATURE = "llava_forgery as a model of lmms-eval"
_api = require("lmms_eval.api.model", extra="eval", feature=FEATURE)


@dataclass(frozen=True)
class _Request:
    """A request for one answer; its picture is read with its batch."""

    read: Callable[[], Question]
    settings: Settings


class LlavaForgery(_api.lmms):
    """The simple interface.

    Args:
        adapter: Folder of a forgery adapter in either layout, or of a whole model: a merged one of
            the ``llava`` package, or an exported checkpoint.
        pretrained: Alternative to ``adapter``, under the name that lmms-eval's own models use.
        base_model: Folder or hub name of the host; by default the one that the adapter names.
        backend: "transformers", "llava", or "auto".
        device: Device such as cpu or cuda; by default a GPU if there is one, under torchrun that of
            the rank.
        dtype: Dtype of the host's weights, as for transformers.
        cropped: Whether the pictures are already face crops; otherwise faces are searched for.
        batch_size: Number of answers generated at once.
        max_batch_size: Passed by lmms-eval; must be None, as no batch size is searched for.
        allow_download: Whether models that the adapter's files name may be downloaded.

    Raises:
        ValueError: A value is invalid, or adapter and host do not match.
        FileNotFoundError: Adapter or host is missing.
    """

    is_simple = True

    def __init__(
        self,
        adapter: str | None = None,
        pretrained: str | None = None,
        base_model: str | None = None,
        backend: str = "auto",
        device: str | None = None,
        dtype: str = "auto",
        cropped: bool = True,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1 or max_batch_size is not None:
            raise ValueError(
                "give the batch size as a number of at least 1; none is searched for. Got "
                f"batch_size={batch_size!r} and max_batch_size={max_batch_size!r}"
            )
        for name, value in (("cropped", cropped), ("allow_download", allow_download)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        if (adapter is None) == (pretrained is None):
            raise ValueError(
                "give the adapter or the whole model as adapter=DIR, or as pretrained=DIR; got "
                f"adapter={adapter!r} and pretrained={pretrained!r}"
            )
        self.batch_size, self.cropped = int(batch_size), cropped
        self._known: dict[str, Settings] = {}
        accelerate = require("accelerate", extra="eval", feature=FEATURE)
        self.accelerator = accelerate.Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if device is None or (device == "cuda" and self._world_size > 1):
            device = self.accelerator.device
        # lmms-eval parses numbers in --model_args, so the name of a folder may arrive as one.
        base_model = None if base_model is None else str(base_model)
        self.predictor = ForgeryPredictor.from_pretrained(
            str(adapter if pretrained is None else pretrained),
            base_model,
            backend,
            device=device,
            dtype=dtype,
            allow_download=allow_download,
        )

    @property
    def device(self) -> Any:
        """Device of the host, on which lmms-eval gathers the ranks' results."""
        return self._device

    @property
    def predictor(self) -> ForgeryPredictor:
        """The predictor, until :meth:`clean`."""
        if self._predictor is None:
            raise RuntimeError("lmms-eval has cleaned this model after a run; make a new one")
        return self._predictor

    @predictor.setter
    def predictor(self, value: ForgeryPredictor) -> None:
        self._predictor, self._device = value, value.vlm.device

    def clean(self) -> None:
        """Release the weights; lmms-eval calls it once all answers are complete."""
        self._predictor = None
        super().clean()

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in the order of the requests."""
        return self._write([self._request(request.args) for request in requests])

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Mean loss of each given answer, and whether the host would generate it."""
        results: list[tuple[float, bool]] = []
        for start in self._bar(range(0, len(requests), self.batch_size), "likelihood"):
            questions, said = [], []
            for request in requests[start : start + self.batch_size]:
                context, continuation, doc_to_visual, doc_id, task, split = request.args
                doc = self._doc(task, split, doc_id)
                questions.append(self._question(doc_to_visual(doc), context))
                plain = isinstance(continuation, str)
                said.append(continuation if plain else continuation(doc))
            results += likelihood(self.predictor.vlm, questions, said)
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answers of all rounds of each request; the task makes each round from previous ones."""
        results = []
        for request in self._bar(requests, "rounds"):
            said: list[str] = []
            for following in self._rounds(request.args, said):
                said += self._write([following])
            results.append(said)
        return results

    def _request(self, args: tuple) -> _Request:
        context, settings, doc_to_visual, doc_id, task, split = args

        def read() -> Question:
            return self._question(doc_to_visual(self._doc(task, split, doc_id)), context)

        return _Request(read, self._settings(settings))

    def _settings(self, kwargs: dict[str, Any]) -> Settings:
        """Parsed once for all requests of a task, so that it warns only once."""
        key = repr(sorted(kwargs.items()))
        if key not in self._known:
            self._known[key] = Settings.from_kwargs(kwargs)
        return self._known[key]

    def _rounds(self, args: tuple, said: list[str]) -> Iterator[_Request]:
        """The requests of one dialogue; ``said`` holds the answers so far."""
        context, settings, doc_to_visual, doc_to_text, doc_id, task, split = args
        doc = self._doc(task, split, doc_id)
        pictures = doc_to_visual(doc)
        settings, state = self._settings(settings), None
        while True:
            yield _Request(lambda p=pictures, c=context: self._question(p, c), settings)
            shown, context, over, _, state = doc_to_text(
                doc, previous_output=list(said), round_idx=len(said), previous_round_info=state
            )
            if over:
                return
            pictures = shown or pictures

    def _write(self, requests: Sequence[_Request]) -> list[str]:
        """Answers in order; requests with equal settings share batches."""
        answers: list[str] = [""] * len(requests)
        groups: dict[Settings, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.settings, []).append(place)
        batches = [
            (settings, places[start : start + self.batch_size])
            for settings, places in groups.items()
            for start in range(0, len(places), self.batch_size)
        ]
        for settings, places in self._bar(batches, "answers", len(batches) < 2):
            questions = [requests[place].read() for place in places]
            found = answer(self.predictor.vlm, questions, settings)
            for place, item in zip(places, found, strict=True):
                answers[place] = _text(item, settings, self.predictor.kfd.thresholds.fake)
        return answers

    def _question(self, pictures: Sequence[Any] | None, text: str) -> Question:
        # Some tasks write the token of the picture, which is added when rendering.
        return self._about(pictures, read_transcript(text.replace(IMAGE_TOKEN, "")))

    def _about(self, pictures: Sequence[Any] | None, messages: tuple[Message, ...]) -> Question:
        if pictures is None or len(pictures) != 1:
            raise ValueError(
                f"llava_forgery answers questions about 1 picture, got {len(pictures or ())}"
            )
        return Question(self.predictor.find_faces(pictures[0], self.cropped)[0].image, messages)

    def _doc(self, task: str, split: str, doc_id: int) -> Any:
        return self.task_dict[task][split][doc_id]

    def _bar(self, items: Iterable[Any], title: str, hidden: bool = False) -> Iterable[Any]:
        return progress(items, title, hidden=hidden or self.rank != 0)


class LlavaForgeryChat(LlavaForgery):
    """The chat interface; arguments as for :class:`LlavaForgery`.

    Tasks with likelihoods need the simple one (``--force_simple``), as lmms-eval only supports
    generation for chat models.
    """

    is_simple = False

    def _request(self, args: tuple) -> _Request:
        _, doc_to_messages, settings, doc_id, task, split = args

        def read() -> Question:
            return self._from_chat(doc_to_messages(self._doc(task, split, doc_id)), None)

        return _Request(read, self._settings(settings))

    def _rounds(self, args: tuple, said: list[str]) -> Iterator[_Request]:
        _, doc_to_messages, settings, doc_id, task, split = args
        doc = self._doc(task, split, doc_id)
        messages, settings, state = doc_to_messages(doc), self._settings(settings), None
        pictures = _pictures(messages)
        while True:
            yield _Request(lambda m=messages, p=pictures: self._from_chat(m, p), settings)
            messages, over, _, state = doc_to_messages(
                doc, round_idx=len(said), previous_output=list(said), previous_round_info=state
            )
            if over:
                return

    def _from_chat(self, messages: Sequence[Any], pictures: list[Any] | None) -> Question:
        """A question from lmms-eval's messages; ``pictures`` are used if these have none."""
        pictures = _pictures(messages) or pictures
        said = [(m["role"], _words(m["content"])) for m in messages]
        if said[0][0] == "system":
            (_, rule), (role, text), *others = said
            said = [(role, f"{rule}\n{text}"), *others]
        if len(said) == 1:
            return self._question(pictures, said[0][1])
        for place, (role, _) in enumerate(said):
            if role != ROLES[place % 2]:
                raise ValueError(
                    "turns must alternate, starting with the user; got "
                    f"{[role for role, _ in said]}"
                )
        return self._about(pictures, tuple(Message(role, text.strip()) for role, text in said))


def _pictures(messages: Sequence[Any]) -> list[Any]:
    """Pictures, or their paths, of all messages in order."""
    parts = [part for message in messages for part in message["content"]]
    strange = sorted({part["type"] for part in parts} - {"text", "image"})
    if strange:
        raise ValueError(f"llava_forgery reads texts and pictures, got {', '.join(strange)}")
    return [part["url"] for part in parts if part["type"] == "image"]


def _words(content: Sequence[Any]) -> str:
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _text(item: Answer, settings: Settings, fake_from: float) -> str:
    if settings.report and item.p_yes is not None:
        return write_report(item.text, item.p_yes, item.score, fake_from)
    return item.text
