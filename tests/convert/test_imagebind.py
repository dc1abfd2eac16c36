"""ImageBind's towers in open_clip: equal to a re-statement, or refused."""

import copy

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from llava_forgery.convert.imagebind import import_imagebind, tower_sources
from llava_forgery.kfd.config import EncoderConfig
from llava_forgery.kfd.encoder import OpenClipEncoder, load_open_clip
from tests import official

RANK = 4


def _imported(tmp_path, state):
    torch.save(state, tmp_path / "imagebind.pth")
    import_imagebind(tmp_path / "imagebind.pth", tmp_path / "out", official.TOWERS, RANK)
    return EncoderConfig("open_clip", f"local-dir:{tmp_path / 'out'}", None, (1, 3), 24, 224)


@torch.no_grad()
@pytest.mark.parametrize("rank", [None, RANK])
def test_towers_equal_imagebinds(tmp_path, rank):
    """Taps, both embeddings, the tokens; with the fork's LoRA, which runs unmerged there."""
    state = official.imagebind_state(rank=rank)
    config = _imported(tmp_path, state)
    model = load_open_clip(config)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    encoder = OpenClipEncoder(model, config)
    normalised = (images - encoder.mean) / encoder.std
    taps, embedding = official.image_features(state, normalised, config.taps)
    for ours, theirs in zip(encoder(images), taps, strict=True):
        expected = theirs[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(model.encode_image(normalised, normalize=True), embedding)
    tokens = open_clip.get_tokenizer(config.name)(["real", "f"])
    expected = official.text_features(state, tokens)
    ours = model.logit_scale.exp() * model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_epsilon_is_imagebinds(tmp_path):
    model = load_open_clip(_imported(tmp_path, official.imagebind_state()))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 2 + 2 * 2 + 1
    assert {norm.eps for norm in norms} == {1e-6}


def test_half_precision_stays_and_the_frames_are_added_exactly(tmp_path):
    state = {n: t.bfloat16() for n, t in official.imagebind_state(rank=RANK).items()}
    _imported(tmp_path, state)
    towers = load_file(tmp_path / "out/open_clip_model.safetensors")
    assert {tensor.dtype for tensor in towers.values()} == {torch.bfloat16}
    kernel = state["modality_preprocessors.vision.rgbt_stem.proj.1.weight"].float()
    assert torch.equal(towers["visual.conv1.weight"], kernel.sum(dim=2).bfloat16())


def test_full_size_names_and_shapes():
    """ImageBind-Huge's, as its own code builds them."""
    sources = tower_sources()
    shapes = {source.name: source.shape for source in sources.values()}
    assert len(shapes) == len(sources) == 686
    assert shapes["modality_preprocessors.vision.rgbt_stem.proj.1.weight"] == (1280, 3, 2, 14, 14)
    assert shapes["modality_preprocessors.vision.pos_embedding_helper.pos_embed"] == (1, 257, 1280)
    assert shapes["modality_trunks.vision.blocks.31.mlp.fc1.weight"] == (5120, 1280)
    assert shapes["modality_trunks.text.blocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert shapes["modality_heads.text.proj.1.weight"] == (1024, 1024)
    assert shapes["modality_postprocessors.text.1.log_logit_scale"] == ()


def _without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


FC1 = "modality_trunks.text.blocks.1.mlp.fc1"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda s: _without(s, f"{FC1}.bias", "modality_heads.vision.2.weight"),
            [f"missing modality_heads.vision.2.weight, {FC1}.bias;"],
        ),
        (
            lambda s: {**s, "modality_trunks.vision.blocks.3.norm_1.bias": torch.ones(32), "x": s[
                f"{FC1}.bias"
            ]},
            ["unknown modality_trunks.vision.blocks.3.norm_1.bias, x;"],
        ),
        (
            lambda s: {**s, f"{FC1}.bias": torch.ones(7)},
            [f"{FC1}.bias has shape (7,), expected (192,)"],
        ),
        # LoRA is there as a whole or not at all.
        (lambda s: {**s, f"{FC1}.lora_A": torch.ones(RANK, 48)}, ["missing", "lora_A, "]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path, change, messages):
    state = change(copy.copy(official.imagebind_state()))
    with pytest.raises(ValueError, match="does not fit") as error:
        _imported(tmp_path, state)
    assert all(message in str(error.value) for message in messages)
    assert [path.name for path in tmp_path.iterdir()] == ["imagebind.pth"]
