"""register() on the real ``llava`` package: what it teaches, and that it can be undone."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.llava.names import PROJECTOR_TYPE
from llava_forgery.hosts.llava.prompts import TEMPLATE, forgery_prefix, paper_template
from llava_forgery.hosts.llava.register import register, registered, unregister
from llava_forgery.hosts.llava.skill import has_forgery_adapter
from llava_forgery.hosts.llava.tower import KFDVisionTower
from tests import tiny, tiny_llava

tiny_llava.require_llava()
arch = pytest.importorskip("llava.model.llava_arch")
loader = pytest.importorskip("llava.model.builder")
conversation = pytest.importorskip("llava.conversation")
towers = pytest.importorskip("llava.model.multimodal_encoder.builder")
projectors = pytest.importorskip("llava.model.multimodal_projector.builder")


@pytest.fixture
def llava_taught():
    register()
    yield
    unregister()


@pytest.fixture(scope="module")
def kfd_folder(tmp_path_factory):
    return tiny_llava.save_kfd(tmp_path_factory.mktemp("tower") / "kfd")


def _state():
    models = loader.LlavaLlamaForCausalLM, loader.LlavaMistralForCausalLM
    return (
        arch.build_vision_tower,
        towers.build_vision_tower,
        arch.build_vision_projector,
        projectors.build_vision_projector,
        loader.load_pretrained_model,
        dict(conversation.conv_templates),
        [m.from_pretrained.__func__ for m in models],
        [(m.forward, m.prepare_inputs_for_generation) for m in models],
    )


def test_registering_twice_is_registering_once_and_can_be_undone():
    before = _state()
    assert not registered()
    register()
    once = _state()
    register()
    assert _state() == once
    assert registered()
    assert all(new is not old for new, old in zip(once[:5], before[:5], strict=True))
    assert once[0] is once[1]
    assert once[2] is once[3]
    assert set(once[5]) - set(before[5]) == {TEMPLATE}
    unregister()
    unregister()
    assert _state() == before
    assert not registered()


def test_builders_know_tower_and_projector(llava_taught, kfd_folder):
    config = SimpleNamespace(mm_vision_tower=f"kfd:{kfd_folder}", vision_tower=None)
    tower = arch.build_vision_tower(config, delay_load=True)
    assert isinstance(tower, KFDVisionTower)
    assert not tower.is_loaded
    with pytest.raises(RuntimeError, match="load_model"):
        tower(torch.zeros(1, 3, tiny.SIZE, tiny.SIZE))
    tower.load_model()
    tower.load_model()
    assert tower.is_loaded
    assert (tower.dtype, tower.device.type) == (torch.float32, "cpu")
    found = tower.image_processor(Image.new("RGB", (90, 60)), return_tensors="pt")["pixel_values"]
    maps = tower(found).consistency_maps
    assert maps.shape[1] * 2 == tower.hidden_size
    assert maps.shape[-1] ** 2 == tower.num_patches
    assert tower.config == tiny.kfd_config()
    assert not tower.train().training
    assert not any(p.requires_grad for p in tower.parameters())

    sizes = FPLConfig(hidden_size=8, num_layers=3).to_dict()
    config = SimpleNamespace(mm_projector_type=PROJECTOR_TYPE, mm_forgery_fpl=sizes)
    projector = arch.build_vision_projector(config)
    assert isinstance(projector, ForgeryPromptLearner)
    assert projector(tower(found)).shape == (1, 9, 8)
    with pytest.raises(ValueError, match="mm_forgery_fpl"):
        arch.build_vision_projector(SimpleNamespace(mm_projector_type=PROJECTOR_TYPE))


def test_what_was_known_before_is_built_by_llava(llava_taught, tmp_path):
    clip = tiny_llava.save_clip(tmp_path / "clip")
    config = SimpleNamespace(mm_vision_tower=str(clip), mm_vision_select_layer=-2)
    assert type(arch.build_vision_tower(config)).__name__ == "CLIPVisionTower"
    config = SimpleNamespace(mm_projector_type="linear", mm_hidden_size=4, hidden_size=8)
    assert isinstance(arch.build_vision_projector(config), torch.nn.Linear)
    with pytest.raises(ValueError, match="Unknown projector type"):
        arch.build_vision_projector(SimpleNamespace(mm_projector_type="none", mm_hidden_size=4))


def test_other_checkpoints_are_as_without_us(tmp_path):
    folder = tiny_llava.save_llava(tmp_path / "tiny-llava")
    _, before, _ = tiny_llava.load_llava(folder)
    register()
    try:
        _, after, _ = tiny_llava.load_llava(folder)
        automatic = loader.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for model in (after, automatic):
            assert type(model) is type(before)
            assert not has_forgery_adapter(model)
        ids = torch.tensor([[601, 40, -200, 41, 42]])
        images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        one, two = (m(input_ids=ids, images=images).logits for m in (before, after))
        assert torch.equal(one, two)
        options = {"images": images, "max_new_tokens": 4, "do_sample": False}
        assert torch.equal(before.generate(ids, **options), after.generate(ids, **options))
    finally:
        unregister()


def test_tower_without_weights_says_what_to_do(llava_taught, kfd_folder, tmp_path):
    config = SimpleNamespace(mm_vision_tower=f"kfd:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"no kfd_config.json; give the folder"):
        arch.build_vision_tower(config, delay_load=True)
    (tmp_path / "kfd_config.json").write_text((kfd_folder / "kfd_config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"no kfd.safetensors; give the folder"):
        arch.build_vision_tower(config, delay_load=True)


def test_without_llava_the_error_says_how_to_install_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "llava" else found(name, *a)
    )
    with pytest.raises(ImportError, match="pip install --no-deps llava-torch"):
        register()
    assert not registered()


def test_the_papers_template_follows_from_v0(llava_taught):
    known = conversation.conv_templates["v0"]
    template = conversation.conv_templates[TEMPLATE].copy()
    assert (template.system, template.roles) == (known.system, known.roles)
    assert (template.sep_style, template.sep) == (known.sep_style, known.sep)
    prompt = forgery_prefix(2, tags=True) + "Is this a deepfake image?"
    template.append_message(template.roles[0], prompt)
    template.append_message(template.roles[1], "No.")
    template.append_message(template.roles[0], "Why?")
    template.append_message(template.roles[1], None)
    assert template.get_prompt() == (
        "A chat between a curious human and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the human's questions.###Human: "
        "<Img><image></Img><forgery><forgery> Is this a deepfake image?###Assistant: No."
        "###Human: Why?###Assistant:"
    )
    assert conversation.conv_templates[TEMPLATE].messages == paper_template().messages
