"""Threads and asyncio tasks that share a model get the answers that each face gets alone."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from llava_forgery.call_state import lock_of
from llava_forgery.evaluation.pseudo_word import rank_answers
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.llava import loading
from llava_forgery.hosts.llava.checkpoint import save_llava_adapter
from llava_forgery.hosts.llava.loading import load_llava
from llava_forgery.hosts.llava.model import attach_to_llava
from llava_forgery.hosts.llava.register import registered
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.prompts import collate, encode
from llava_forgery.infer.explain import explain
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import Verdict
from llava_forgery.qa.build import build_prompt
from tests import tiny, tiny_hosts, tiny_llava, tiny_towers
from tests.hosts.transformers.contract import attach, perturb

THREADS, CALLS, FACES = 8, 48, 6
SIDE = 64
KINDS = ("transformers", "shared", "llava", "llava_shared")


@pytest.fixture(autouse=True)
def many_switches(monkeypatch):
    """Threads take turns after every few steps, so that a state they share is mixed up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(function: Callable[[int], Any], calls: int = CALLS) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, range(calls)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("threads")


def _llava(folder, shared: bool) -> ForgeryPredictor:
    tiny_llava.require_llava()
    source = folder / "tiny-llava"
    if not source.is_dir():
        tiny_llava.save_llava(source, aspect="anyres")
        tiny_llava.save_kfd(folder / "kfd")
        tiny_llava.save_tower_kfd(folder / "tower-kfd", folder / "clip")
    words, model, _ = tiny_llava.load_llava(source)
    detector = folder / ("tower-kfd" if shared else "kfd")
    attach_to_llava(model, detector, FPLConfig(1, 3, n_forgery=2))
    return ForgeryPredictor(LlavaForgeryVLM(model, words), max_new_tokens=3)


def _shared_tower(folder) -> ForgeryPredictor:
    name = str(folder / "host")
    if not (folder / "host").is_dir():
        tiny_towers.saved(folder / "host")
    host, processor = tiny_towers.llava()
    return ForgeryPredictor(
        attach_forgery(host, processor, tiny_towers.kfd(name)), max_new_tokens=3
    )


@pytest.fixture(scope="module", params=KINDS)
def predictor(request, folder) -> ForgeryPredictor:
    """One that tells the faces apart."""
    if request.param == "transformers":
        found = ForgeryPredictor(attach("llava"), max_new_tokens=3)
    elif request.param == "shared":
        found = _shared_tower(folder)
    else:
        found = _llava(folder, request.param == "llava_shared")
    vlm = found.vlm
    learner = vlm.fpl if hasattr(vlm, "fpl") else vlm.get_model().forgery_projector
    tiny.tell_apart(learner, 300.0)
    side = found.size
    pixels = torch.stack([torch.from_numpy(tiny.picture(i, side)) for i in range(FACES)])
    with torch.no_grad():
        vectors = learner(vlm.detect(pixels.permute(0, 3, 1, 2).float() / 255)).flatten(1)
    assert torch.pdist(vectors, float("inf")).min() > 1e-4
    return found


@dataclass(frozen=True)
class Seen:
    """A verdict, and what of the prompt reached the language model."""

    verdict: Verdict
    embedded: torch.Tensor
    """(1, T, C), E_forgery in it."""


class Judge:
    """Calls ``predict`` and looks at what the language model's first layer is given."""

    def __init__(self, predictor: ForgeryPredictor) -> None:
        self.predictor, self._own = predictor, threading.local()
        modules = predictor.vlm.modules()
        layer = next(m for m in modules if type(m).__name__ == "LlamaDecoderLayer")
        self._handle = layer.register_forward_pre_hook(self._look)

    def _look(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # A prompt, not the steps that follow it.
        if inputs[0].shape[1] > 1:
            self._own.embedded = inputs[0]

    def __call__(self, call: int) -> Seen:
        verdict = self.predictor.predict(face(call), cropped=True)
        return Seen(verdict, self._own.embedded)

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: Any) -> None:
        self._handle.remove()


@pytest.fixture(scope="module")
def alone(predictor) -> list[Seen]:
    """Of each face, one after the other."""
    with Judge(predictor) as judge:
        return [judge(call) for call in range(FACES)]


def face(call: int):
    return tiny.picture(call % FACES, SIDE)


def assert_own(found: Sequence[Seen], alone: Sequence[Seen]) -> None:
    """Each call gave what its own face gives alone."""
    for call, seen in enumerate(found):
        expected = alone[call % FACES]
        torch.testing.assert_close(seen.embedded, expected.embedded, atol=1e-5, rtol=0)
        assert seen.verdict.score == pytest.approx(expected.verdict.score, abs=1e-5)
        assert seen.verdict.p_yes == pytest.approx(expected.verdict.p_yes, abs=1e-5)
        assert abs(seen.verdict.mask - expected.verdict.mask).max() < 1e-5


class BrokenStreamer(BaseStreamer):
    """Fails while the host writes."""

    def __init__(self) -> None:
        self.tokens = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += 1
        if self.tokens == 3:
            raise ConnectionError

    def end(self) -> None:
        raise AssertionError("the answer was written")


def hooks_of(predictor: ForgeryPredictor) -> int:
    modules = predictor.vlm.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_threads_get_the_verdicts_of_their_own_faces(predictor, alone):
    before = hooks_of(predictor)
    with Judge(predictor) as judge:
        assert_own(in_threads(judge), alone)
    assert hooks_of(predictor) == before


def test_tasks_get_the_verdicts_of_their_own_faces(predictor, alone):
    async def all_at_once():
        return await asyncio.gather(*(asyncio.to_thread(judge, i) for i in range(2 * FACES)))

    with Judge(predictor) as judge:
        assert_own(asyncio.run(all_at_once()), alone)


def test_calls_of_all_kinds_and_calls_that_fail(predictor, alone):
    """Verdicts, rates of batches, dialogues of two turns, and errors, all at once."""
    before = hooks_of(predictor)

    def said(number: int) -> list[str]:
        dialogue = predictor.dialogue(face(number), cropped=True)
        assert dialogue.score == pytest.approx(alone[number].verdict.score, abs=1e-5)
        return [dialogue.ask("Is this a deepfake image?"), dialogue.ask("Why?")]

    expected = [said(number) for number in range(FACES)]

    def call(number: int) -> Seen:
        own = number % FACES
        if number % 4 == 1:
            assert said(own) == expected[own]
        elif number % 4 == 2:
            with pytest.raises(ValueError, match="multiply floats"):
                predictor.predict(face(own) / 255, cropped=True)
            dialogue = predictor.dialogue(face(own), cropped=True)
            with pytest.raises(ConnectionError):
                dialogue.ask("Why?", BrokenStreamer())
            assert dialogue.messages == ()
        elif number % 4 == 3:
            pair = [predictor.find_faces(face(i), cropped=True)[0] for i in (own, own + 1)]
            scores, p_yes = predictor.predict_scores(pair)
            both = [alone[i % FACES].verdict for i in (own, own + 1)]
            assert scores == pytest.approx([verdict.score for verdict in both], abs=1e-5)
            assert p_yes == pytest.approx([verdict.p_yes for verdict in both], abs=1e-5)
        return judge(own)

    with Judge(predictor) as judge:
        assert_own(in_threads(call, 24), alone)
    assert hooks_of(predictor) == before


def test_explanations(predictor):
    pytest.importorskip("pytorch_grad_cam")
    box = (0.0, 0.0, float(SIDE), float(SIDE))

    def call(number: int):
        (cropped,) = predictor.find_faces(face(number), cropped=True)
        return explain(predictor, [FaceInput(cropped.image, box)])[0]

    expected = [call(number) for number in range(FACES)]
    for number, found in enumerate(in_threads(call, THREADS)):
        one = expected[number % FACES]
        assert found.verdict.p_yes == pytest.approx(one.verdict.p_yes, abs=1e-5)
        assert abs(found.consistency - one.consistency).max() < 1e-4
        assert abs(found.grad_cam - one.grad_cam).max() < 1e-3


@pytest.mark.parametrize("model_type", tiny_hosts.family_params())
def test_every_family_generates_for_its_own_pictures(model_type):
    """Of pictures of other sizes, so of other tiles, grids and positions."""
    vlm = perturb(attach(model_type))
    tiny.tell_apart(vlm.fpl, 30.0)
    sizes = ((32, 32), (64, 32), (40, 64), (64, 64))
    batches = []
    for i, size in enumerate(sizes):
        picture = Image.fromarray(tiny.picture(i, SIDE)).resize(size)
        sample = encode(
            build_prompt(0.1 + 0.2 * i), vlm.processor, images=[picture],
            n_forgery_tokens=vlm.n_forgery,
        )  # fmt: skip
        pixels = torch.from_numpy(tiny.picture(i)).permute(2, 0, 1)[None].float() / 255
        batch = collate([sample], vlm.processor.tokenizer.pad_token_id)
        batches.append({**batch, "forgery_images": pixels})

    def logits(call: int) -> torch.Tensor:
        output = vlm.generate(
            **batches[call % len(sizes)], max_new_tokens=3, min_new_tokens=3, do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack(output.logits)

    expected = [logits(call) for call in range(len(sizes))]
    for call, found in enumerate(in_threads(logits, 16)):
        torch.testing.assert_close(found, expected[call % len(sizes)], atol=1e-4, rtol=1e-4)


def test_a_host_that_remembers_its_last_call_is_called_in_turn():
    predictor = ForgeryPredictor(attach("qwen2_5_vl"), max_new_tokens=2)
    host = predictor.vlm.host.get_base_model()
    dialogue = predictor.dialogue(face(0), cropped=True)
    with ThreadPoolExecutor(2) as pool:
        with lock_of(host):
            calls = [
                pool.submit(predictor.predict, face(0), True),
                pool.submit(dialogue.ask, "Fake?"),
            ]
            assert not wait(calls, 0.5).done
        assert all(call.result(60) is not None for call in calls)


@pytest.mark.parametrize("with_skill", [False, True])
def test_a_pseudo_word_stands_in_every_threads_prompt(with_skill):
    if with_skill:
        model = attach("llava", lora=None)
        processor = model.processor
    else:
        model, processor = tiny_hosts.build("instructblip")
    vlm = attach_pseudo_word(model, processor).eval()
    with torch.no_grad():
        for vector in vlm.word.vectors.values():
            vector.weight.mul_(20)
    host = model.host if with_skill else model
    embedding = host.get_input_embeddings()

    def rows(call: int) -> torch.Tensor:
        """What the host's embedding gives for prompts of other lengths."""
        text = "Is it? " * (call % FACES) + vlm.config.prompt
        return embedding(processor.tokenizer(text, return_tensors="pt")["input_ids"])

    def rank(call: int) -> torch.Tensor:
        return torch.tensor(rank_answers(vlm, [Image.fromarray(face(call))]))

    for function in (rows,) if with_skill else (rows, rank):
        expected = [function(call).detach() for call in range(FACES)]
        for call, found in enumerate(in_threads(function)):
            torch.testing.assert_close(found, expected[call % FACES], atol=1e-5, rtol=0)


def test_threads_that_share_a_dialogue_take_turns(predictor):
    dialogue = predictor.dialogue(face(0), cropped=True)
    answers = in_threads(lambda call: dialogue.ask(f"Question {call}?"), THREADS)
    said = dialogue.messages
    assert [message.role for message in said] == ["user", "assistant"] * THREADS
    asked = {message.text.split("Question ")[1]: said[2 * i + 1].text
             for i, message in enumerate(said[::2])}  # fmt: skip
    assert asked == {f"{call}?": answer for call, answer in enumerate(answers)}


def test_the_face_detector_is_made_once(monkeypatch, predictor):
    made = []

    def get_detector(name):
        made.append(name)
        return object()

    monkeypatch.setattr("llava_forgery.infer.predictor.get_detector", get_detector)
    other = ForgeryPredictor(predictor.vlm)
    assert len(set(map(id, in_threads(lambda _: other.face_detector)))) == 1
    assert made == ["dlib"]


def test_threads_load_models_one_after_the_other(folder, monkeypatch):
    """LLaVA's classes know the skill only while a model is loaded."""
    _llava(folder, shared=False)
    _, model, _ = tiny_llava.load_llava(folder / "tiny-llava")
    adapter = folder / "tiny-llava-fpl"
    attach_to_llava(model, folder / "kfd", FPLConfig(1, 3, n_forgery=2))
    save_llava_adapter(model, adapter)
    original, inside = loading.AutoTokenizer.from_pretrained, []

    def slowly(*args, **options):
        inside.append(threading.get_ident())
        time.sleep(0.2)
        assert inside[-1] == threading.get_ident()
        return original(*args, **options)

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", slowly)
    models = [model for _, model in in_threads(lambda _: load_llava(adapter, device="cpu"), 3)]
    assert all(model.n_forgery == 2 for model in models)
    assert not registered()
