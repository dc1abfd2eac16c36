"""One checkpoint with host, detector and learner, by transformers' own auto classes."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    TextStreamer,
    Trainer,
    TrainingArguments,
    dynamic_module_utils,
    pipeline,
)
from typer.testing import CliRunner

from llava_forgery import ForgeryPredictor, export_transformers, register_auto_classes
from llava_forgery.cli import app
from llava_forgery.constants import FORGERY_TOKEN
from llava_forgery.evaluation.scorers import load_scorer
from llava_forgery.faces.crop import whole_square
from llava_forgery.faces.detect import get_detector
from llava_forgery.faces.detected import square_of_face
from llava_forgery.files import read_json
from llava_forgery.hosts.auto import AutoForgeryModel, ForgeryProcessor
from llava_forgery.hosts.transformers.chat import image_token_of
from llava_forgery.hosts.transformers.export import save_exported
from llava_forgery.hosts.transformers.exported import (
    LlavaForgeryForConditionalGeneration,
)
from llava_forgery.hosts.transformers.exported_processor import LlavaForgeryProcessor
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.hosts.transformers.vlm import ForgeryVLM
from llava_forgery.kfd.config import EncoderConfig
from llava_forgery.qa.conversation import Conversation, Message
from tests import tiny, tiny_hosts, tiny_towers
from tests.hosts.transformers.contract import PHOTOGRAPHS, attach, batch_of, perturb

FAST = ("llava",)
FAMILIES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in tiny_hosts.FAMILIES
]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request, tmp_path_factory):
    """A model with its LoRA merged, the folder that it was exported to, and what was loaded."""
    vlm = perturb(attach(request.param))
    folder = tmp_path_factory.mktemp(request.param) / "exported"
    save_exported(vlm, folder, max_shard_size="200KB")
    return vlm, folder, LlavaForgeryForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Where transformers copies the code of checkpoints to."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def registered(monkeypatch):
    """The auto classes as :func:`register_auto_classes` leaves them, for one test."""
    from transformers.models.auto import configuration_auto, modeling_auto, processing_auto

    for mapping in (
        configuration_auto.CONFIG_MAPPING,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        processing_auto.PROCESSOR_MAPPING,
    ):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    register_auto_classes()
    register_auto_classes()


def chat(*pictures: Image.Image, question: str = "Fake?") -> list[dict]:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]


def asked(processor: LlavaForgeryProcessor, *conversations: list[dict], **options) -> dict:
    options = {"padding": True, "padding_side": "left", **options}
    return processor.apply_chat_template(
        list(conversations), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt", processor_kwargs=options,
    )  # fmt: skip


def states(folder) -> dict[str, torch.Tensor]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found.update(load_file(path))
    return found


def test_logits_and_answers_are_those_of_the_adapter(exported):
    vlm, _, model = exported
    batch = batch_of(vlm)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, vlm(**batch).logits, atol=0, rtol=0)
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    assert torch.equal(model.generate(**batch, **options), vlm.generate(**batch, **options))


def test_prompts_of_another_processor_are_told_of(exported, caplog):
    """It does not know where their images end, and must not leave the skill out in silence."""
    vlm, _, model = exported
    model._clients.said_unused = False
    batch = batch_of(vlm)
    ids = batch["input_ids"]
    batch = {**batch, "input_ids": ids.masked_fill(ids == model.token_id, 5)}
    for name in ("forgery_images", "images_per_sample"):
        batch.pop(name, None)
    with torch.no_grad():
        model(**batch)
    assert "without the skill" in caplog.text


def test_saved_and_loaded_bit_for_bit(exported, tmp_path):
    _, folder, model = exported
    assert len(list(folder.glob("*.safetensors"))) > 1
    index = read_json(folder / "model.safetensors.index.json")["weight_map"]
    first = states(folder)
    assert set(index) == set(first)
    model.save_pretrained(tmp_path)
    second = states(tmp_path)
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("modeling_llava_forgery.py", "generation_config.json"):
        assert (folder / name).read_text() == (tmp_path / name).read_text()
    values = read_json(folder / "config.json")
    assert values["model_type"] == "llava_forgery"
    assert values["host_config"]["model_type"] == model.family.model_type
    assert values["auto_map"] == read_json(tmp_path / "config.json")["auto_map"]


def test_the_processor_asks_as_training_does(exported):
    vlm, folder, _ = exported
    processor = LlavaForgeryProcessor.from_pretrained(folder)
    # The image processor that transformers picks for a folder may be another than the test's.
    vlm.use_processor(processor.host_processor())
    for pictures in PHOTOGRAPHS:
        prompt = Conversation((Message("user", "Fake?"),), label=None)
        expected = vlm.prompts.encode(prompt, pictures)
        found = asked(processor, chat(*pictures))
        assert found["input_ids"][0].tolist() == expected["input_ids"].tolist()
        for name, value in expected.items():
            assert torch.equal(found[name].reshape(value.shape), value), name
        assert found["forgery_images"].shape == (len(pictures), 3, tiny.SIZE, tiny.SIZE)
        assert found["forgery_images"].dtype == torch.uint8
        assert ("images_per_sample" in found) == (len(pictures) != 1)


@pytest.mark.slow
def test_a_padded_batch_of_chats_is_answered_as_each_alone(exported):
    _, folder, model = exported
    processor = LlavaForgeryProcessor.from_pretrained(folder)
    chats = [chat(PHOTOGRAPHS[0][0]), chat(PHOTOGRAPHS[1][0], question="Is this face forged?")]
    together = asked(processor, *chats)
    with torch.no_grad():
        logits = model(**together).logits[:, -1]
        for row, one in zip(logits, chats, strict=True):
            found = model(**asked(processor, one)).logits[0, -1]
            torch.testing.assert_close(found, row, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_every_input_of_the_processor_is_named_for_the_trainer(exported):
    vlm, folder, model = exported
    processor = LlavaForgeryProcessor.from_pretrained(folder)
    trainer = Trainer(model, TrainingArguments(report_to="none", use_cpu=True))
    trainer._set_signature_columns_if_needed()
    taken = {*asked(processor, chat(*PHOTOGRAPHS[1])), *vlm.prompts.encode(
        Conversation((Message("user", "?"), Message("assistant", "No.")), None), PHOTOGRAPHS[0]
    )}  # fmt: skip
    assert taken - {"batch_num_images"} <= set(trainer._signature_columns)


@pytest.mark.slow
@pytest.mark.parametrize("remote", [True, False])
def test_pipeline(exported, modules, request, remote):
    vlm, folder, _ = exported
    if not remote:
        request.getfixturevalue("registered")
    pipe = pipeline("image-text-to-text", str(folder), trust_remote_code=remote, device="cpu")
    assert type(pipe.model) is LlavaForgeryForConditionalGeneration
    processor = pipe.processor
    assert isinstance(processor, LlavaForgeryProcessor)
    assert isinstance(processor, type(vlm.processor))
    said = pipe(text=chat(PHOTOGRAPHS[0][0]), max_new_tokens=4, return_full_text=False)
    ids = pipe.model.generate(
        **asked(processor, chat(PHOTOGRAPHS[0][0])), max_new_tokens=4, do_sample=False
    )
    length = asked(processor, chat(PHOTOGRAPHS[0][0]))["input_ids"].shape[1]
    expected = processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    assert said[0]["generated_text"] == expected


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An exported LLaVA, and the adapter that it was exported from, with its host beside it."""
    folder = tmp_path_factory.mktemp("plain")
    host, processor = tiny.llava()
    host.save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    vlm = attach_forgery(
        AutoModelForImageTextToText.from_pretrained(folder / "host"), processor, tiny.kfd()
    )
    vlm.training_facts = {"steps": 7}
    perturb(vlm).save_pretrained(folder / "adapter")
    arguments = ["--model", folder / "adapter", "--out", folder / "exported"]
    said = CliRunner().invoke(app, ["convert", "export-transformers", *map(str, arguments)])
    assert said.exit_code == 0, said.exception
    return folder


def test_our_own_loaders_take_it(plain):
    model = AutoForgeryModel.from_pretrained(plain / "exported")
    assert isinstance(model, ForgeryVLM)
    adapter = AutoForgeryModel.from_pretrained(plain / "adapter")
    for one in (model, adapter):
        assert one.training_facts == {"steps": 7}
    inputs = ForgeryProcessor(adapter)(tiny.picture(), "Is this a deepfake image?")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, adapter(**inputs).logits)
    found = ForgeryProcessor(model)(tiny.picture(), "Is this a deepfake image?")
    assert all(torch.equal(found[name], inputs[name]) for name in inputs)
    pictures = [tiny.picture(i) for i in range(2)]
    assert load_scorer(plain / "exported")(pictures) == load_scorer(plain / "adapter")(pictures)
    alone = [ForgeryPredictor.from_pretrained(plain / name, answers="none")
             for name in ("exported", "adapter")]  # fmt: skip
    # The detector was read, and nothing of the host.
    assert [(one.answers, one.vlm) for one in alone] == [("none", None)] * 2
    one, two = (scores.predict(tiny.picture(), cropped=True) for scores in alone)
    assert (one.score, one.band) == (two.score, two.band)
    with pytest.raises(ValueError, match="holds its host: give no base_model"):
        AutoForgeryModel.from_pretrained(plain / "exported", str(plain / "host"))


@pytest.mark.slow
def test_a_streamer_gets_the_answer_as_it_is_written(plain):
    model = AutoForgeryModel.from_pretrained(plain / "exported")
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    pieces = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    inputs = asked(processor, chat(PHOTOGRAPHS[0][0]))
    ids = model.generate(
        **inputs, streamer=Streamer(processor.tokenizer, skip_prompt=True), max_new_tokens=5
    )
    answer = ids[0, inputs["input_ids"].shape[1] :]
    assert "".join(pieces) == processor.tokenizer.decode(answer)
    assert model.token_id not in answer
    # Of a prompt with placeholders, and of one that the model puts them into.
    bare = {name: t for name, t in inputs.items() if name != "input_ids"}
    bare["attention_mask"] = bare["attention_mask"][:, model.n_forgery :]
    unwritten = inputs["input_ids"][inputs["input_ids"] != model.token_id][None]
    for given in (inputs, {**bare, "input_ids": unwritten}):
        pieces.clear()
        said = model.generate(**given, streamer=Streamer(processor.tokenizer), max_new_tokens=5)
        assert torch.equal(said[:, -5:], ids[:, -5:])
        assert "".join(pieces) == processor.tokenizer.decode([*unwritten[0], *answer])


@pytest.mark.slow
def test_suppressed_tokens_of_a_configuration_stay_suppressed(plain):
    model = AutoForgeryModel.from_pretrained(plain / "exported")
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    inputs = asked(processor, chat(PHOTOGRAPHS[0][0]))
    length = inputs["input_ids"].shape[1]
    first = int(model.generate(**inputs, max_new_tokens=1)[0, length])
    config = transformers.GenerationConfig(max_new_tokens=1, suppress_tokens=[first])
    assert int(model.generate(**inputs, generation_config=config)[0, length]) != first
    assert config.suppress_tokens == [first]
    model.generation_config.suppress_tokens = [first]
    assert int(model.generate(**inputs, max_new_tokens=1)[0, length]) != first


def test_placeholders_stand_where_the_placement_has_them(plain):
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    image, run = image_token_of(processor), FORGERY_TOKEN * 9
    picture, question = PHOTOGRAPHS[0][0], "Fake?"
    # The adapter is of placement always: they come when the images' tokens do.
    assert run not in processor.apply_chat_template(chat(picture), add_generation_prompt=True)
    processor.forgery = replace(processor.forgery, behind=False)
    written = processor.apply_chat_template(chat(picture), add_generation_prompt=True)
    assert f"{image}\n{run}\n{question}" in written
    # A text of one's own, as programs write it.
    found = processor(images=picture, text=f"{image}\n{question}", return_tensors="pt")
    by_hand = processor(images=picture, text=f"{image}{run}\n{question}", return_tensors="pt")
    assert torch.equal(found["input_ids"], by_hand["input_ids"])
    assert "forgery_images" not in processor(text="Hello", return_tensors="pt")
    # Written ones are not doubled.
    again = processor(images=picture, text=written, return_tensors="pt")
    assert torch.equal(again["input_ids"], asked(processor, chat(picture))["input_ids"])


@pytest.mark.slow
def test_the_detector_sees_the_face(plain, samples_dir):
    photograph = Image.open(next(samples_dir.rglob("*.jpg"))).convert("RGB")
    picture = photograph.resize((320, 300))
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    seen = {}
    for crop in ("face", "none"):
        processor.forgery = replace(processor.forgery, crop=crop)
        seen[crop] = asked(processor, chat(picture))["forgery_images"][0].permute(1, 2, 0).numpy()
    # As everywhere else: what is not square is padded with its edge, not with black.
    whole = whole_square(np.array(picture), tiny.SIZE)
    assert (seen["none"] == whole).all()
    face = square_of_face(np.array(picture), tiny.SIZE, lambda: get_detector("dlib")).image
    assert np.abs(seen["face"].astype(int) - face).max() <= 1
    assert (face != whole).any()


@pytest.mark.slow
def test_a_dtype_of_the_pipeline_leaves_the_detectors_picture_alone(plain):
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    inputs = asked(processor, chat(PHOTOGRAPHS[0][0])).to(dtype=torch.bfloat16)
    model = LlavaForgeryForConditionalGeneration.from_pretrained(
        plain / "exported", dtype=torch.bfloat16
    ).eval()
    assert model.host.dtype == torch.bfloat16
    assert {p.dtype for part in (model.kfd, model.fpl) for p in part.parameters()} == {
        torch.float32
    }
    exact = AutoForgeryModel.from_pretrained(plain / "exported")
    pictures = inputs["forgery_images"]
    assert torch.equal(model.detect(pictures).score, exact.detect(pictures / 255).score)


@pytest.mark.slow
def test_processors_are_pickled(plain):
    """As worker processes get them."""
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    other = pickle.loads(pickle.dumps(processor))
    assert other.to_dict() == processor.to_dict()
    found = asked(other, chat(PHOTOGRAPHS[0][0]))
    assert torch.equal(found["input_ids"], asked(processor, chat(PHOTOGRAPHS[0][0]))["input_ids"])


@pytest.mark.slow
def test_the_trainer_trains_host_and_learner_and_leaves_the_detector(plain, tmp_path):
    model = LlavaForgeryForConditionalGeneration.from_pretrained(plain / "exported")
    processor = LlavaForgeryProcessor.from_pretrained(plain / "exported")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def collate(rows):
        batch = asked(processor, *(chat(tiny.picture(row["seed"])) for row in rows))
        # Nothing is learnt at placeholders, which no vocabulary has.
        return {**batch, "labels": batch["input_ids"].clone()}

    options = {"report_to": "none", "use_cpu": True, "max_steps": 2, "learning_rate": 1e-3}
    arguments = TrainingArguments(
        str(tmp_path), remove_unused_columns=False, per_device_train_batch_size=2,
        save_steps=2, save_strategy="steps", disable_tqdm=True, **options,
    )  # fmt: skip
    rows = [{"seed": i} for i in range(4)]
    Trainer(model, arguments, collate, rows, processing_class=processor).train()
    changed = {name.split(".")[0] for name, t in model.state_dict().items()
               if not torch.equal(t, before[name])}  # fmt: skip
    assert changed == {"host", "fpl"}
    saved = tmp_path / "checkpoint-2"
    loaded = AutoForgeryModel.from_pretrained(saved)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny_towers.KINDS)
def test_a_detector_on_the_hosts_own_tower(kind, tmp_path):
    host, processor = tiny_towers.llava(kind)
    host.save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    kfd = tiny_towers.kfd(str(tmp_path / "host"))
    vlm = perturb(attach_forgery(host, processor, kfd)).eval()
    save_exported(vlm, tmp_path / "exported")
    model = AutoForgeryModel.from_pretrained(tmp_path / "exported")
    processor = LlavaForgeryProcessor.from_pretrained(tmp_path / "exported")
    inputs = asked(processor, chat(Image.fromarray(tiny.picture())))
    assert "forgery_images" not in inputs
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, vlm(**inputs).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), vlm.generate(**inputs, **options))


@pytest.mark.slow
def test_an_encoder_of_open_clip_needs_no_folder_of_its_own(tmp_path):
    clip = tiny_towers.save_open_clip(tmp_path / "clip")
    encoder = EncoderConfig("open_clip", f"local-dir:{clip}", None, (1, 3), 24, 32)
    host, processor = tiny.llava()
    vlm = perturb(attach_forgery(host, processor, tiny.kfd(encoder=encoder))).eval()
    save_exported(vlm, tmp_path / "exported")
    clip.rename(tmp_path / "gone")
    model = AutoForgeryModel.from_pretrained(tmp_path / "exported")
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.detect(pictures).mask, vlm.detect(pictures).mask)
    assert str(tmp_path) not in (tmp_path / "exported" / "config.json").read_text()


@pytest.mark.slow
def test_what_lacks_or_is_no_export_is_named(plain, tmp_path):
    with pytest.raises(ValueError, match="host_processor_class None"):
        LlavaForgeryProcessor.from_pretrained(plain / "host")
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="would be replaced"):
        export_transformers(plain / "adapter", tmp_path)
    model = LlavaForgeryForConditionalGeneration.from_pretrained(plain / "exported")
    state = model.state_dict()
    state.pop("fpl.base")
    model.save_pretrained(tmp_path / "cut", state_dict=state)
    LlavaForgeryProcessor.from_pretrained(plain / "exported").save_pretrained(tmp_path / "cut")
    with pytest.raises(ValueError, match="does not hold all weights: 1 are missing, such as fpl"):
        AutoForgeryModel.from_pretrained(tmp_path / "cut")


@pytest.mark.slow
def test_without_the_package_the_error_says_what_to_install(plain, tmp_path):
    program = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "llava_forgery":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
from transformers import AutoModelForImageTextToText, AutoProcessor
for auto in (AutoModelForImageTextToText, AutoProcessor):
    try:
        auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program, str(plain / "exported")],
        capture_output=True, text=True, check=True, env={"HF_HOME": str(tmp_path)}, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert said.count("pip install llava_forgery") == 2, said
