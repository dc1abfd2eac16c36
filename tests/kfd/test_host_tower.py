"""A host's vision tower as the detector's encoder: reading, loading, tapping, refusing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil

from llava_forgery.kfd.checkpoint import detector_digest
from llava_forgery.kfd.config import EncoderConfig, KFDConfig
from llava_forgery.kfd.detector import KnowledgeGuidedForgeryDetector
from llava_forgery.kfd.host_config import host_config, parse_taps, spread_taps
from llava_forgery.kfd.host_tower import check_processor, load_tower
from llava_forgery.kfd.losses import LossWeights, training_losses
from tests import tiny, tiny_towers
from tests.tiny_towers import KINDS, SIDE


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    return {kind: tiny_towers.saved(folder / kind, kind) for kind in KINDS}


def _images(count=2):
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def test_taps_are_spread_as_the_papers():
    assert spread_taps(32) == (16, 24, 32)
    assert spread_taps(24) == (12, 18, 24)
    assert spread_taps(1) == (1,)
    assert parse_taps("12,18,24") == (12, 18, 24)
    assert parse_taps(None) is None
    with pytest.raises(ValueError, match="'12;18'"):
        parse_taps("12;18")


def test_configuration_is_the_hosts(hosts):
    encoder = host_config(hosts["clip"]).encoder
    assert (encoder.image_size, encoder.taps) == (32, (2, 3, 4))
    assert (encoder.tower.model_type, encoder.tower.width, encoder.tower.layers) == (
        "clip_vision_model", 24, 4,
    )  # fmt: skip
    assert encoder.tower.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert host_config(hosts["siglip"]).encoder.tower.std == (0.5, 0.5, 0.5)
    config = host_config(hosts["clip"], taps=(1, 4), heads="paper")
    assert KFDConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("kind", KINDS)
def test_tower_alone_is_the_hosts_in_its_dtype(tmp_path, kind):
    host, _ = tiny_towers.llava(kind)
    host.half().save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path))
    expected = host.get_encoder(modality="image").state_dict()
    found = tower.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert tower.dtype == torch.float16
    # Checkpoints on the hub name one more level.
    path = tmp_path / "model.safetensors"
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(renamed, path, metadata={"format": "pt"})
    again = load_tower(str(tmp_path)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
    for name in list(renamed):
        if name.endswith("layers.1.mlp.fc1.weight"):
            del renamed[name]
    save_file(renamed, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"whole vision tower.*layers\.1\.mlp\.fc1\.weight"):
        load_tower(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_taps_are_the_blocks_outputs_on_the_patches(hosts, kind):
    host, processor = tiny_towers.llava(kind)
    detector = tiny_towers.kfd(hosts[kind], taps=(1, 3))
    from PIL import Image

    picture = tiny.picture(0, SIDE)
    pixels = processor.image_processor(images=[Image.fromarray(picture)], return_tensors="pt")
    tower = host.get_encoder(modality="image")
    with torch.no_grad():
        states = tower(**pixels, output_hidden_states=True).hidden_states
        found = detector.encoder(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    for tap, grid in zip((1, 3), found, strict=True):
        patches = states[tap][:, int(kind == "clip") :]
        # Row 2, column 5.
        torch.testing.assert_close(grid[0, :, 2, 5], patches[0, 2 * 8 + 5], atol=1e-5, rtol=1e-5)
        assert grid.shape == (1, 24, 8, 8)


def test_only_the_detectors_own_weights_learn_and_are_saved(hosts, tmp_path):
    detector = tiny_towers.kfd(hosts["clip"])
    detector.train()
    assert not detector.encoder.tower.training
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 8:16, 8:16] = 1
    _, losses = training_losses(detector, _images(1), _images(1), mask, LossWeights())
    losses["loss"].backward()
    assert all(p.grad is None for p in detector.encoder.parameters())
    assert float(detector.consistency.linears[2].weight.grad.abs().sum()) > 0
    # Host and detector are moved together.
    shutil.copytree(hosts["clip"], tmp_path / "one/host")
    moved = tiny_towers.kfd(str(tmp_path / "one/host"))
    moved.save_pretrained(tmp_path / "one/kfd")
    assert str(tmp_path) not in (tmp_path / "one/kfd/kfd_config.json").read_text()
    digest = detector_digest(moved)
    (tmp_path / "one").rename(tmp_path / "two")
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "two/kfd")
    assert torch.equal(loaded(_images()).class_logits, moved.eval()(_images()).class_logits)
    assert torch.equal(loaded(_images()).mask_logits, moved(_images()).mask_logits)
    # It is the same one there.
    assert detector_digest(loaded) == digest
    names = set(load_file(tmp_path / "two/kfd/kfd.safetensors"))
    assert not any(name.startswith("encoder.") for name in names)


def test_without_its_tower_it_says_where_to_get_it(hosts, tmp_path):
    tiny_towers.kfd(hosts["clip"]).save_pretrained(tmp_path)
    detector = KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path, with_tower=False)
    assert detector.encoder.tower is None
    with pytest.raises(RuntimeError, match="attach_forgery"):
        detector(_images())


def test_its_host_is_not_downloaded_unasked(hosts, tmp_path, network):
    tiny_towers.kfd(hosts["clip"]).save_pretrained(tmp_path / "kfd")
    config = tmp_path / "kfd/kfd_config.json"
    tiny.edit_json(config, config__encoder__name="evil/host")
    message = r"names the host of the vision tower 'evil/host', which is not on this machine"
    with pytest.raises(FileNotFoundError, match=message):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd")
    # The host that the user gives needs no permission, the text encoder of the file does.
    given = {"base_model": hosts["clip"]}
    KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", **given)
    tiny.edit_json(config, config__encoder__text_model="RN50", config__encoder__pretrained="openai")
    with pytest.raises(
        FileNotFoundError, match="names the encoder 'RN50' and the weights 'openai'"
    ):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", True, **given)
    assert network == []


def test_another_tower_is_refused(hosts, tmp_path):
    tiny_towers.kfd(hosts["clip"]).save_pretrained(tmp_path / "kfd")
    other = tiny_towers.saved(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="trained on other weights"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", base_model=other)
    wide = tiny_towers.saved(tmp_path / "wide", hidden_size=32)
    with pytest.raises(ValueError, match="width 24, this host's has 32"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", base_model=wide)
    deep = tiny_towers.saved(tmp_path / "deep", num_hidden_layers=5)
    with pytest.raises(ValueError, match="layers 4, this host's has 5"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", base_model=deep)
    large = tiny_towers.saved(tmp_path / "large", image_size=40)
    with pytest.raises(ValueError, match="image_size 32, this host's has 40"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", base_model=large)
    with pytest.raises(ValueError, match="siglip"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", base_model=hosts["siglip"])
    with pytest.raises(FileNotFoundError, match="'nowhere'"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "kfd", base_model="nowhere")
    tiny.kfd().save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="takes no host"):
        KnowledgeGuidedForgeryDetector.from_pretrained(tmp_path / "own", base_model=other)


def test_the_same_tower_in_another_dtype_is_recognised(tmp_path):
    """With weights as small as transformers makes them; larger ones amplify the rounding."""
    host, processor = tiny_towers.llava()
    with torch.no_grad():
        for parameter in host.get_encoder(modality="image").parameters():
            parameter.mul_(1 / 8 if parameter.ndim > 1 else 1)
    host.save_pretrained(tmp_path / "host")
    processor.save_pretrained(tmp_path / "host")
    tiny_towers.kfd(str(tmp_path / "host")).save_pretrained(tmp_path / "kfd")
    host.bfloat16().save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(
        tmp_path / "kfd", base_model=str(tmp_path / "half")
    )
    assert loaded.encoder.tower.dtype == torch.bfloat16
    assert loaded(_images()).score.dtype == torch.float32


def test_wrong_wishes_are_errors(hosts, tmp_path):
    with pytest.raises(ValueError, match=r"1 \.\.\. 4, .* got \(2, 5\)"):
        host_config(hosts["clip"], taps=(2, 5))
    with pytest.raises(FileNotFoundError, match="'nowhere/at-all'"):
        host_config("nowhere/at-all")
    with pytest.raises(ValueError, match="no model 'ViT-Z'"):
        host_config(hosts["clip"], text_model="ViT-Z")
    coarse = tiny_towers.saved(tmp_path / "coarse", patch_size=8)
    with pytest.raises(ValueError, match="4 x 4 patches, the 'lite' heads need"):
        host_config(coarse)
    assert host_config(coarse, heads="paper").num_layers == 3
    with pytest.raises(ValueError, match="kind 'open_clip'"):
        EncoderConfig(tower=host_config(hosts["clip"]).encoder.tower)
    with pytest.raises(ValueError, match="needed there"):
        EncoderConfig(kind="host")


def test_a_host_that_sees_the_image_otherwise_is_refused(hosts):
    encoder = host_config(hosts["clip"]).encoder
    tiles = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=[[2 * SIDE, SIDE], [SIDE, 2 * SIDE]],
    )
    with pytest.raises(ValueError, match="cuts images into tiles.*encoder of its own"):
        check_processor(tiles, encoder, "LLaVA-NeXT")
    for change in (
        {"size": {"shortest_edge": SIDE + 4}},
        {"image_mean": [0.5, 0.5, 0.5]},
        {"do_rescale": False},
    ):
        values = {"size": {"shortest_edge": SIDE}, **change}
        processor = CLIPImageProcessorPil(crop_size={"height": SIDE, "width": SIDE}, **values)
        with pytest.raises(ValueError, match="a different picture"):
            check_processor(processor, encoder, "host")


def test_clips_text_tower_beside_a_hosts_image_tower(hosts, tmp_path):
    tiny_towers.save_open_clip(tmp_path / "clip")
    detector = tiny_towers.kfd(hosts["siglip"], text_model=f"local-dir:{tmp_path / 'clip'}")
    assert detector.config.encoder.text_width == 24
    assert detector.config.temperature == 100.0
    trained = [n for n, p in detector.knowledge.named_parameters() if p.requires_grad]
    assert trained == ["context"]
    detector.save_pretrained(tmp_path / "kfd")
    assert set(load_file(tmp_path / "kfd/knowledge.safetensors")) == {"context"}
    # The text tower is not needed for inference.
    shutil.rmtree(tmp_path / "clip")
    loaded = KnowledgeGuidedForgeryDetector.from_pretrained(Path(tmp_path / "kfd"))
    assert torch.equal(loaded(_images()).class_logits, detector.eval()(_images()).class_logits)
