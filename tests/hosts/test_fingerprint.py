import copy
import logging

import pytest
import torch

from llava_forgery.files import read_json, write_json
from llava_forgery.hosts.fingerprint import check_fingerprint, host_fingerprint, host_parts
from llava_forgery.hosts.names import CONFIG
from llava_forgery.hosts.transformers.loading import load_adapter
from llava_forgery.hosts.transformers.model import attach_forgery
from tests import tiny, tiny_hosts

# Qwen's projector is a part of its tower.
PARTS = {
    **{key: ["vision tower"] for key in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")},
    "instructblip": ["vision tower", "qformer", "projector"],
}


@pytest.fixture(scope="module")
def other():
    return tiny.llava(seed=1)[0]


def with_part(name, other):
    """A host of which one part is another one's."""
    host, processor = tiny.llava()
    getattr(host.model, name).load_state_dict(getattr(other.model, name).state_dict())
    return host, processor


@pytest.mark.parametrize("model_type", tiny_hosts.family_params())
def test_parts_of_every_family_are_told(model_type):
    host, _ = tiny_hosts.build(model_type)
    assert [name for name, _ in host_parts(host)] == PARTS.get(
        model_type, ["vision tower", "projector"]
    )
    known = host_fingerprint(host)
    check_fingerprint(host, known, "the adapter")
    for name, part in host_parts(host):
        kept = copy.deepcopy(part.state_dict())
        for parameter in part.parameters():
            parameter.data.mul_(1.1)
        with pytest.raises(ValueError, match=f"other weights of its {name} .*by 0.1 of"):
            check_fingerprint(host, known, "the adapter")
        part.load_state_dict(kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_change_of_precision_is_none_of_weights(dtype):
    host, _ = tiny.llava()
    known = host_fingerprint(host)
    cast = host_fingerprint(host.to(dtype))
    check_fingerprint(host, known, "the adapter")
    check_fingerprint(tiny.llava()[0], cast, "the adapter")


@pytest.mark.parametrize(
    ("module", "name"), [("vision_tower", "vision tower"), ("multi_modal_projector", "projector")]
)
def test_an_adapter_knows_its_hosts_tower_and_projector(module, name, other, tmp_path):
    attach_forgery(*tiny.llava(), tiny.kfd()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"adapter was trained .* other weights of its {name}"):
        load_adapter(tmp_path / "adapter", *with_part(module, other))
    # As adapters were written before.
    config = read_json(tmp_path / "adapter" / CONFIG)
    del config["host"]["parts"]
    write_json(tmp_path / "adapter" / CONFIG, config)
    load_adapter(tmp_path / "adapter", *with_part(module, other))
    with pytest.raises(ValueError, match="other weights of its input embeddings"):
        load_adapter(tmp_path / "adapter", *tiny.llava(seed=1))


def test_a_part_with_more_layers_is_another_one():
    host, _ = tiny.llava()
    known = host_fingerprint(host)
    del host.model.vision_tower.encoder.layers[-1]
    with pytest.raises(ValueError, match=r"vision tower has \d+ matrices .* this one's has \d+"):
        check_fingerprint(host, known, "the adapter")


def test_what_is_quantised_is_not_compared_and_said(caplog):
    host, _ = tiny.llava()
    known = host_fingerprint(host)
    for parameter in host.model.multi_modal_projector.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.int8)
    with caplog.at_level(logging.WARNING):
        check_fingerprint(host, known, "the adapter")
    assert "the host's projector could not be compared" in caplog.text


@pytest.mark.parametrize("name", ["vision_tower", "multi_modal_projector", "language_model"])
def test_a_host_with_nan_is_refused(name):
    host, processor = tiny.llava()
    for parameter in getattr(host.model, name).parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="hold NaN or infinite values"):
        attach_forgery(host, processor, tiny.kfd())
