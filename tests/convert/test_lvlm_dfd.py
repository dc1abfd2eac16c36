"""The official checkpoint in our formats: equal to a re-statement, or refused."""

import json
import pickle
import shutil

import open_clip
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from llava_forgery.cli import app
from llava_forgery.convert.lvlm_dfd import attach_lvlm_dfd, import_lvlm_dfd
from llava_forgery.convert.lvlm_dfd_keys import (
    LvlmDfdSizes,
    detector_sources,
    language_lora_sources,
    learner_sources,
)
from llava_forgery.fpl.config import FPLConfig
from llava_forgery.fpl.learner import ForgeryPromptLearner
from llava_forgery.hosts.lora import LORA_WEIGHTS
from llava_forgery.hosts.transformers.loading import load_adapter
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from tests import official, tiny

RANK = 4
# The tiny LLaVA's language model: 32 wide, two blocks; its k and v are as wide as its q here.
SIZES = LvlmDfdSizes(32, 2, RANK, official.TOWERS, (1, 2, 3), RANK)


def _state(tower_rank=RANK, towers=True):
    state = official.lvlm_dfd_state(width=32, rank=RANK)
    if towers:
        images = official.imagebind_state(rank=tower_rank)
        state |= {f"visual_encoder.{name}": tensor for name, tensor in images.items()}
    return state


@pytest.fixture(scope="module")
def state():
    return _state()


@pytest.fixture(scope="module")
def imported(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    torch.save(state, folder / "ckpt.pth")
    import_lvlm_dfd(folder / "ckpt.pth", folder / "out", sizes=SIZES)
    # Found again where the folder was moved to.
    shutil.move(folder / "out", folder / "moved")
    return folder / "moved"


def _official_text(state):
    """Each letter is a text of its own; the context, which was never saved, is left out."""
    towers = {n.removeprefix("visual_encoder."): t for n, t in state.items()}
    letters = [open_clip.get_tokenizer("ViT-H-14")(list(word)) for word in ("real", "fake")]
    return towers, [official.text_features(towers, tokens) for tokens in letters]


@torch.no_grad()
def test_maps_mask_score_and_prompts_equal_the_officials(state, imported):
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    kfd = KnowledgeGuidedForgeryDetector.from_pretrained(imported / "kfd")
    fpl = ForgeryPromptLearner(SIZES.fpl).eval()
    fpl.load_state_dict(load_file(imported / "fpl.safetensors"))
    found = kfd(images)
    towers, words = _official_text(state)
    normalised = (images - kfd.encoder.mean) / kfd.encoder.std
    tokens, _ = official.image_features(towers, normalised, SIZES.taps)
    maps, mask, probabilities = official.detect(state, tokens, words)
    prompts = official.learn_prompts(state, maps, mask, probabilities)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.consistency_maps, maps, **close)
    torch.testing.assert_close(found.mask, mask, **close)
    torch.testing.assert_close(found.score, probabilities[:, 1], **close)
    torch.testing.assert_close(fpl(found), prompts, **close)
    # The comparison would not see an order of channels if all were alike.
    assert float(maps.std()) > 1
    assert float(mask.std()) > 1e-3
    assert float(prompts.std()) > 1e-3


@torch.no_grad()
@pytest.mark.slow
def test_heads_and_prompts_of_official_sizes():
    """Linear layers 1280 to 1024, embeddings 4096 wide, a grid of 16 x 16."""
    sizes = LvlmDfdSizes()
    state = official.lvlm_dfd_state(vision=1280, text=1024, width=4096, layers=32, rank=32)
    for sources in (detector_sources(sizes), learner_sources(sizes)):
        for source in sources.values():
            assert tuple(state[source.name].shape) == source.shape, source.name
    assert all(
        tuple(state[s.name].shape) == s.shape for s in language_lora_sources(sizes, state).values()
    )
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(1, 257, 1280, generator=generator) for _ in range(3)]
    words = [torch.randn(4, 1024, generator=generator) for _ in range(2)]
    maps, mask, probabilities = official.detect(state, tokens, words)
    prompts = official.learn_prompts(state, maps, mask, probabilities)

    kfd = _heads_alone(state, sizes)
    kfd.text_features.copy_(torch.stack([w.mean(dim=0) for w in words]))
    found = kfd.read_features([t[:, 1:].transpose(1, 2).unflatten(2, (16, 16)) for t in tokens])
    fpl = ForgeryPromptLearner(sizes.fpl).eval()
    learned = {name: s.convert(state[s.name]) for name, s in learner_sources(sizes).items()}
    fpl.load_state_dict(learned)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.consistency_maps, maps, **close)
    torch.testing.assert_close(found.mask, mask, **close)
    torch.testing.assert_close(found.score, probabilities[:, 1], **close)
    torch.testing.assert_close(fpl(found), prompts, **close)


def _heads_alone(state, sizes):
    """A detector without its towers, which the official sizes' heads do not need."""
    from llava_forgery.kfd.config import PRESETS
    from llava_forgery.kfd.consistency import ConsistencyMaps
    from llava_forgery.kfd.heads import ForgeryClassifier, PaperLocator

    kfd = KnowledgeGuidedForgeryDetector.__new__(KnowledgeGuidedForgeryDetector)
    torch.nn.Module.__init__(kfd)
    kfd.config, kfd.knowledge = PRESETS["paper"], None
    kfd.consistency = ConsistencyMaps([1280] * 3, 1024, 100.0)
    kfd.locator, kfd.classifier = PaperLocator(3), ForgeryClassifier(3)
    kfd.register_buffer("text_features", torch.zeros(2, 1024))
    own = kfd.state_dict()
    for name, source in detector_sources(sizes).items():
        own[name].copy_(source.convert(state[source.name]))
    kfd.training = False
    return kfd.eval()


def test_lora_is_pefts_for_the_language_model(state, imported):
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    model = PeftModel.from_pretrained(LlamaForCausalLM(config), imported)
    weights = model.base_model.model.model.layers[1].self_attn.v_proj
    stem = "llama_model.base_model.model.model.layers.1.self_attn.v_proj"
    assert torch.equal(weights.lora_B["default"].weight, state[f"{stem}.lora_B.default.weight"])
    assert weights.scaling == {"default": 1.0}
    assert json.loads((imported / "adapter_config.json").read_text())["r"] == RANK
    projection = load_file(imported / "llama_proj.safetensors")
    assert torch.equal(projection["weight"], state["llama_proj.weight"])


def _host():
    """The tiny LLaVA with as many heads for keys and values as for queries, as Vicuna has."""
    host, processor = tiny.llava()
    config = host.config.get_text_config()
    config.num_key_value_heads = config.num_attention_heads
    return type(host)(host.config).eval(), processor


def test_parts_on_a_host_become_an_adapter(state, imported, tmp_path):
    host, processor = _host()
    vlm = attach_lvlm_dfd(host, processor, imported)
    assert torch.equal(vlm.fpl.base, state["prompt_learner.base_prompts"])
    vlm.save_pretrained(tmp_path / "adapter")
    bare, processor = vlm.detach(), tiny.llava()[1]
    again = load_adapter(tmp_path / "adapter", bare, processor)
    again.save_pretrained(tmp_path / "again")
    stem = "llama_model.base_model.model.model.layers.0.self_attn.o_proj.lora_A.default.weight"
    for folder in ("adapter", "again"):
        tensors = load_file(tmp_path / folder / LORA_WEIGHTS)
        found = [t for n, t in tensors.items() if "layers.0.self_attn.o_proj.lora_A" in n]
        assert len(found) == 1
        assert torch.equal(found[0], state[stem])


def test_host_of_another_depth_is_refused(imported):
    host, processor = _host()
    host.config.get_text_config().num_hidden_layers = 1
    with pytest.raises(ValueError, match=r"unknown layers\.1\.self_attn"):
        attach_lvlm_dfd(type(host)(host.config), processor, imported)


def _run(tmp_path, state, **options):
    torch.save(state, tmp_path / "ckpt.pth")
    import_lvlm_dfd(tmp_path / "ckpt.pth", tmp_path / "out", sizes=SIZES, **options)


def test_towers_may_come_from_imagebinds_own_checkpoint(tmp_path, imported):
    """The fork's LoRA in the one file, ImageBind's weights in the other: the same towers."""
    state = _state()
    prefix = "visual_encoder."
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    torch.save({n: t for n, t in own.items() if "lora" not in n}, tmp_path / "imagebind.pth")
    rest = {n: t for n, t in state.items() if not n.startswith(prefix) or "lora_" in n}
    _run(tmp_path, rest, imagebind=tmp_path / "imagebind.pth")
    name = "encoder/open_clip_model.safetensors"
    one, other = load_file(tmp_path / "out" / name), load_file(imported / name)
    assert all(torch.equal(one[key], other[key]) for key in other)
    with pytest.raises(ValueError, match="omit --imagebind"):
        _run(tmp_path, state, imagebind=tmp_path / "imagebind.pth")
    with pytest.raises(ValueError, match="--imagebind imagebind_huge.pth"):
        _run(tmp_path, official.lvlm_dfd_state(width=32, rank=RANK))


LORA = "llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            dict.fromkeys((LORA, "locator.conv.2.bias", "llama_proj.bias")),
            [f"missing {LORA}, llama_proj.bias, locator.conv.2.bias;"],
        ),
        (
            {"ctx": torch.ones(16, 24), "image_decoder.fc.3.bias": torch.ones(24)},
            ["unknown ctx, image_decoder.fc.3.bias;"],
        ),
        (
            {"prompt_learner.finalconv.weight": torch.ones(9, 27, 3)},
            ["prompt_learner.finalconv.weight has shape (9, 27, 3), expected (9, 28, 3)"],
        ),
        (
            {"visual_encoder.modality_heads.vision.2.lora_A": None},
            ["missing visual_encoder.modality_heads.vision.2.lora_A"],
        ),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path, state, change, messages):
    changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match="does not fit") as error:
        _run(tmp_path, changed)
    assert all(message in str(error.value) for message in messages)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pth"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path, state):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"holds no lvlm_dfd\.json: it would be replaced"):
        _run(tmp_path, state)
    assert (tmp_path / "out/mine.txt").read_text() == "keep"


class _Payload:
    """What a hostile file does when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


@pytest.mark.parametrize("command", ["lvlm-dfd", "imagebind"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("payload", "refused"),
        ("plain pickle", "refused"),
        ("text", "refused"),
        ("cut", "damaged or not a checkpoint"),
        ("nested", "give only the state_dict"),
        ("none", "there is no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, state, command, kind, message):
    path, ran = tmp_path / "ckpt.pth", tmp_path / "ran"
    if kind == "payload":
        torch.save({**official.lvlm_dfd_state(), "x": _Payload(ran)}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(_Payload(ran)))
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "cut":
        torch.save(official.lvlm_dfd_state(), path)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": official.lvlm_dfd_state()}, path)
    result = CliRunner().invoke(
        app, ["convert", command, str(path), "--out", str(tmp_path / "out")]
    )
    assert isinstance(result.exception, (ValueError, FileNotFoundError))
    assert message in str(result.exception)
    assert not ran.exists()
    assert [p.name for p in tmp_path.iterdir()] == (["ckpt.pth"] if kind != "none" else [])


@pytest.mark.parametrize("command", ["lvlm-dfd", "imagebind"])
def test_commands_expect_the_official_sizes(tmp_path, command):
    torch.save({"visual_encoder.x": torch.ones(1)}, tmp_path / "ckpt.pth")
    arguments = ["convert", command, str(tmp_path / "ckpt.pth"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert "unknown visual_encoder.x;" in str(result.exception)
    missing = {"lvlm-dfd": 1154, "imagebind": 686}[command]
    assert f"and {missing - 3} more" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_sizes_are_checked():
    assert LvlmDfdSizes().fpl == FPLConfig(4096, 3, "paper")
    with pytest.raises(ValueError, match="lora_rank must be at least 1, got 0"):
        LvlmDfdSizes(lora_rank=0)
