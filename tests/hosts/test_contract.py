"""What works on both backends: one list, run over tiny checkpoints, and the table of the docs.

python -m tests.hosts.test_contract        # writes the table into docs/backends.md
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.hosts.auto import BACKENDS, AutoForgeryModel, ForgeryProcessor
from llava_forgery.hosts.base import ForgeryModel
from llava_forgery.hosts.language_model import prompt_embeddings, save_language_model
from llava_forgery.hosts.layouts import convert_adapter
from llava_forgery.hosts.likelihood import answer_likelihoods, answer_probabilities
from llava_forgery.hosts.llava.model import attach_to_llava, llava_lora_config
from llava_forgery.hosts.llava.names import TEMPLATE_KEY
from llava_forgery.hosts.llava.vlm import LlavaForgeryVLM
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.qa.build import build_prompt, detection_prompt
from llava_forgery.qa.conversation import Conversation, Message
from llava_forgery.tensors import from_bytes, to_device
from tests import tiny, tiny_llava
from tests.hosts import training_rows
from tests.hosts.transformers.contract import perturb

PAGE = Path(__file__).parents[2] / "docs/backends.md"
MARKS = ("<!-- table: python -m tests.hosts.test_contract -->", "<!-- end of the table -->")
LORA = LoraSettings(r=2, alpha=4, dropout=0.0)
# Of different size, so that tiles, where there are any, differ as well.
FACES = tuple(tiny.picture(i) for i in range(3))
QUESTIONS = ("Is this a deepfake image?", "Where is the artifact?", "Why?")


@dataclass(frozen=True)
class Backend:
    """A backend's tiny host with a trained adapter, on disk."""

    name: str
    root: Path
    """Holds both backends' ``host-*`` and ``*-llava-lora-*`` folders."""

    @property
    def host(self) -> Path:
        return self.root / {"transformers": "twin", "llava": "tiny-llava"}[self.name]

    @property
    def adapter(self) -> Path:
        return self.root / f"llava-lora-of-{self.name}"

    def load(self, directory: Path | None = None, **options) -> ForgeryModel:
        options = {"device": "cpu", **options}
        return AutoForgeryModel.from_pretrained(
            directory or self.adapter, str(self.host), **options
        )

    def predictor(self, **options) -> ForgeryPredictor:
        return ForgeryPredictor(self.load(**options), max_new_tokens=8)


@dataclass(frozen=True)
class Row:
    """One thing that both backends do."""

    what: str
    check: Callable[[Backend, Path], None]
    missing: dict[str, str] = field(default_factory=dict)
    """Why a backend cannot, by its name."""
    slow: bool = False


ROWS: list[Row] = []


def row(what: str, slow: bool = False, **missing: str):
    def add(check: Callable[[Backend, Path], None]) -> Callable[[Backend, Path], None]:
        ROWS.append(Row(what, check, missing, slow))
        return check

    return add


def make(root: Path, name: str) -> None:
    """Write a backend's host, detector and adapter."""
    if not (root / "kfd").is_dir():
        tiny_llava.save_kfd(root / "kfd")
        tiny_llava.save_llava(root / "tiny-llava")
        tiny_llava.save_twin(root / "tiny-llava", root / "twin")
    fpl = FPLConfig(1, 3, n_forgery=2)
    if name == "transformers":
        host, processor = load_host(root, "twin")
        kfd = KnowledgeGuidedForgeryDetector.from_pretrained(root / "kfd")
        vlm = attach_forgery(host, processor, kfd, fpl, LORA)
    else:
        words, model, _ = tiny_llava.load_llava(root / "tiny-llava")
        attach_to_llava(model.requires_grad_(False), root / "kfd", fpl)
        setattr(model.config, TEMPLATE_KEY, "v1")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tuned = get_peft_model(model, llava_lora_config(model, LORA))
        tuned.get_base_model().get_model().forgery_projector.requires_grad_(True)
        vlm = LlavaForgeryVLM(tuned, words)
    perturb(vlm).save_pretrained(root / f"llava-lora-of-{name}")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    tiny_llava.require_llava()
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, root) -> Backend:
    if not Backend(request.param, root).adapter.is_dir():
        make(root, request.param)
    return Backend(request.param, root)


def faces(predictor: ForgeryPredictor) -> list:
    return [predictor.find_faces(face, cropped=True)[0] for face in FACES]


def logits_of(vlm: ForgeryModel) -> torch.Tensor:
    sample = vlm.prompts.encode(build_prompt(0.3), [Image.fromarray(FACES[0])])
    batch = to_device(vlm.prompts.collate([sample]), vlm.device)
    with torch.no_grad():
        return vlm(**batch, forgery_images=from_bytes(FACES[0])[None]).logits


@row("judging in batches")
def batches(backend: Backend, folder: Path) -> None:
    predictor = backend.predictor()
    found = faces(predictor)
    together, alone = (
        predictor.predict_faces(found),
        [predictor.predict_faces([f])[0] for f in found],
    )
    assert [v.answer for v in together] == [v.answer for v in alone]
    for key in ("score", "p_yes"):
        values = [getattr(v, key) for v in alone]
        assert [getattr(v, key) for v in together] == pytest.approx(values, abs=1e-5)
    assert len({v.score for v in together}) == len(FACES)
    _, p_yes = predictor.predict_scores(found)
    assert p_yes == pytest.approx([v.p_yes for v in together], abs=1e-5)


@row("dialogue on the cache")
def dialogue(backend: Backend, folder: Path) -> None:
    predictor = backend.predictor()
    kept = predictor.dialogue(FACES[0], cropped=True)
    anew = predictor.dialogue(FACES[0], cropped=True, reuse_cache=False)
    for turn, question in enumerate(QUESTIONS):
        assert kept.ask(question) == anew.ask(question)
        assert bool(kept.reused_tokens) == (turn > 0)
        assert not anew.reused_tokens


@row("prompt embeddings for its language model by itself, as vLLM takes them")
def language_model(backend: Backend, folder: Path) -> None:
    vlm = backend.load()
    inputs = ForgeryProcessor(vlm)(FACES[0], build_prompt(0.3))
    # Before LoRA is merged: it changes nothing of what the language model is fed.
    embeddings = prompt_embeddings(vlm, **inputs)
    wanted = vlm(**inputs).logits
    assert len(embeddings) == wanted.shape[1]
    save_language_model(vlm, folder / "language")
    plain = AutoModelForCausalLM.from_pretrained(folder / "language").eval()
    assert type(plain).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(plain(inputs_embeds=embeddings[None]).logits, wanted,
                                   rtol=0, atol=1e-4)  # fmt: skip
    AutoTokenizer.from_pretrained(folder / "language")
    with pytest.raises(ValueError, match="one at a time"):
        prompt_embeddings(vlm, **ForgeryProcessor(vlm)(list(FACES[:2]), [build_prompt(0.3)] * 2))


@row("likelihoods of whole answers")
def likelihoods(backend: Backend, folder: Path) -> None:
    predictor = backend.predictor()
    vlm, image = predictor.vlm, Image.fromarray(FACES[0])
    verdict = predictor.predict(FACES[0], cropped=True)
    prompt, detection = build_prompt(verdict.score), vlm.detect(from_bytes(FACES[0])[None])
    found = answer_probabilities(
        vlm, prompt, ["Yes", "No"], image, detection=detection, include_end=False
    )
    assert float(found[0]) == pytest.approx(verdict.p_yes, abs=1e-5)
    said = ["Yes. The artifact is at the nose.", "No"]
    both = answer_likelihoods(vlm, [prompt] * 2, said, [image] * 2, detection.select([0, 0]))
    for answer, one in zip(said, both, strict=True):
        (alone,) = answer_likelihoods(vlm, [prompt], [answer], [image], detection)
        assert one.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-4)
        assert one.tokens == alone.tokens > 1


@row("the model of lmms-eval")
def lmms_eval(backend: Backend, folder: Path) -> None:
    interface = pytest.importorskip("llava_forgery.integrations.lmms_eval.model").LlavaForgery
    model = interface(
        str(backend.adapter), base_model=str(backend.host), device="cpu", batch_size=2
    )
    model.task_dict = {"task": {"test": [{"image": Image.fromarray(face)} for face in FACES]}}

    def request(i: int, asked: str | dict) -> SimpleNamespace:
        return SimpleNamespace(
            args=(detection_prompt(), asked, lambda doc: [doc["image"]], i, "task", "test")
        )

    texts = model.generate_until([request(i, {"max_new_tokens": 8}) for i in range(len(FACES))])
    found = faces(model.predictor)
    model.predictor.max_new_tokens = 8
    assert texts == [verdict.answer for verdict in model.predictor.predict_faces(found)]
    _, p_yes = model.predictor.predict_scores(found[:1])
    losses = [loss for loss, _ in model.loglikelihood([request(0, w) for w in ("Yes", "No")])]
    # Means over as many tokens as it takes to tell the two apart.
    shared, _, _ = model.predictor.vlm.prompts.candidate_ids(build_prompt())
    odds = math.exp((1 + len(shared)) * (losses[1] - losses[0]))
    assert odds / (1 + odds) == pytest.approx(p_yes[0], abs=1e-5)


@row("a host in 4 or 8 bits")
def quantised(backend: Backend, folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    exact = logits_of(backend.load())
    for kind in ("4bit", "8bit"):
        vlm = backend.load(quantization=kind)
        assert logits_of(vlm).isfinite().all()
        assert not torch.equal(logits_of(vlm), exact)
        with pytest.raises(ValueError, match="quantised"):
            vlm.merge_lora()


@row('a host spread over devices (`device="auto"`)')
def spread(backend: Backend, folder: Path) -> None:
    vlm = backend.load(device="auto")
    torch.testing.assert_close(logits_of(vlm).cpu(), logits_of(backend.load()))


@row("merging LoRA")
def merging(backend: Backend, folder: Path) -> None:
    vlm = backend.load()
    before = logits_of(vlm)
    vlm.merge_lora()
    assert not vlm.has_lora
    torch.testing.assert_close(logits_of(vlm), before, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="merged"):
        vlm.save_pretrained(folder / "adapter")


@row("saving, reloading")
def saving(backend: Backend, folder: Path) -> None:
    vlm = backend.load()
    vlm.save_pretrained(folder / "llava-lora-again")
    again = backend.load(folder / "llava-lora-again")
    assert torch.equal(logits_of(again), logits_of(vlm))
    with torch.no_grad():
        for parameter in again.fpl.parameters():
            parameter.zero_()
    assert not torch.equal(logits_of(again), logits_of(vlm))
    again.load_weights(backend.adapter)
    assert torch.equal(logits_of(again), logits_of(vlm))


@row("pictures and words as inputs (`ForgeryProcessor`)")
def processing(backend: Backend, folder: Path) -> None:
    vlm = backend.load()
    processor = ForgeryProcessor(vlm)
    Image.fromarray(FACES[1]).save(folder / "face.png")
    words = detection_prompt(0.3)
    inputs = processor(images=[FACES[0], folder / "face.png"], text=[words, QUESTIONS[2]])
    with torch.no_grad():
        torch.testing.assert_close(vlm(**inputs).logits[0, -1], logits_of(vlm)[0, -1])
        ids = vlm.generate(**inputs, **processor.stopping(), max_new_tokens=8, do_sample=False)
        (alone,) = backend.predictor().predict_faces(faces(backend.predictor())[:1])
    answers = processor.decode(ids, inputs)
    assert len(answers) == 2
    assert answers != [alone.answer] * 2
    said = Conversation((Message("user", words), Message("assistant", "No.")), label=0)
    inputs = processor(images=Image.fromarray(FACES[0]), text=said)
    assert math.isfinite(float(vlm(**inputs).loss))
    for wrong in ((FACES[0], [words, words]), (list(FACES[:2]), [words, said])):
        with pytest.raises(ValueError, match="one image for each text|got both or neither"):
            processor(*wrong)


@row("peft reads the LoRA, and only it (`PeftModel.from_pretrained`)")
def peft_reads(backend: Backend, folder: Path) -> None:
    vlm = backend.load()
    bare = backend.load().detach()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        without = bare(input_ids=ids).logits
        alone = PeftModel.from_pretrained(bare, backend.adapter).eval()
        found = alone(input_ids=ids).logits
        torch.testing.assert_close(found, vlm.host(input_ids=ids).logits)
    assert not torch.equal(found, without)
    assert not any("forgery" in name for name, _ in alone.named_modules())


@row("detaching")
def detaching(backend: Backend, folder: Path) -> None:
    vlm = backend.load()
    host = vlm.detach()
    names = {name for name, _ in host.named_parameters()}
    assert not any("lora" in name or "forgery" in name for name in names)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        found = host(input_ids=ids).logits
    other = backend.load()
    with torch.no_grad():
        assert not torch.equal(found, other.host(input_ids=ids).logits)


@row("converting to the other backend")
def converting(backend: Backend, folder: Path) -> None:
    other = Backend(next(name for name in BACKENDS if name != backend.name), backend.root)
    moved, back = folder / "llava-lora-moved", folder / "llava-lora-back"
    convert_adapter(backend.adapter, moved, str(other.host))
    vlm = other.load(moved)
    assert vlm.n_forgery == 2
    convert_adapter(moved, back, str(backend.host))
    torch.testing.assert_close(logits_of(backend.load(back)), logits_of(backend.load()))


for _what, (_check, _slow) in training_rows.ROWS.items():
    row(_what, _slow)(_check)

row(
    "training a pseudo-word",
    llava="AntifakePrompt's vector is trained on hosts of transformers, to which adapters convert",
)(training_rows.pseudo_word)


def _params() -> list:
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(one, id=one.check.__name__, marks=marks[one.slow]) for one in ROWS]


@pytest.mark.parametrize("one", _params())
def test_row(backend, one, tmp_path):
    if backend.name in one.missing:
        pytest.skip(one.missing[backend.name])
    one.check(backend, tmp_path)


def table() -> str:
    """The rows as Markdown."""
    lines = [f"| | {' | '.join(BACKENDS)} |", f"|---|{'---|' * len(BACKENDS)}"]
    for one in ROWS:
        cells = [f"no: {one.missing[n]}" if n in one.missing else "yes" for n in BACKENDS]
        lines.append(f"| {one.what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The docs' page with the table as it is now."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{table()}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def test_the_page_shows_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run python -m tests.hosts.test_contract"


def test_three_gaps_at_most():
    assert sum(len(one.missing) for one in ROWS) <= 3


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
