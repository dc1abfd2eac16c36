import pytest
import typer
from PIL import Image

from llava_forgery.cli.options import memory_size
from llava_forgery.hosts.lora import LoraSettings
from llava_forgery.hosts.transformers.model import attach_forgery
from llava_forgery.infer import memory
from llava_forgery.infer.predictor import ForgeryPredictor
from llava_forgery.qa.build import build_prompt
from tests import tiny


class Watched(ForgeryPredictor):
    """Remembers how many faces each batch held."""

    sizes = ()

    def _predict_faces(self, faces):
        self.sizes += (len(faces),)
        return super()._predict_faces(faces)


@pytest.fixture(scope="module")
def vlm():
    host, processor = tiny.llava()
    return attach_forgery(host, processor, tiny.kfd(), lora=LoraSettings(r=2, alpha=4))


def _faces(predictor, count):
    return [predictor.find_faces(tiny.picture(i), cropped=True)[0] for i in range(count)]


def test_batches_keep_to_the_memory_and_say_the_same(vlm):
    predictor = Watched(vlm, max_new_tokens=2)
    faces = _faces(predictor, 6)
    whole = predictor.predict_faces(faces)
    assert predictor.sizes == (1, 5)
    per_face = predictor._memory.bytes
    for room, sizes in [(3 * per_face, (3, 3)), (2 * per_face + 1, (2, 2, 2)), (1, (1,) * 6)]:
        predictor.max_memory, predictor.sizes = room, ()
        for one, other in zip(whole, predictor.predict_faces(faces), strict=True):
            assert one.p_yes == pytest.approx(other.p_yes, abs=1e-5)
            assert one.answer == other.answer
        assert predictor.sizes == sizes


def test_what_a_face_takes_is_counted_and_no_hook_stays(vlm):
    predictor = ForgeryPredictor(vlm, max_new_tokens=2)
    (face,) = _faces(predictor, 1)
    predictor.predict_faces([face])
    encoded = vlm.prompts.encode(build_prompt(0.5), [Image.fromarray(face.image)])
    assert predictor._memory.tokens == pytest.approx(len(encoded["input_ids"]), abs=2)
    text = vlm.host.config.get_text_config()
    logits = 2 * 4 * text.vocab_size
    assert predictor._memory.bytes > logits + face.image.size * 4
    assert not any(module._forward_hooks for module in vlm.kfd.modules())


def test_a_detector_alone_counts_no_tokens(vlm):
    predictor = ForgeryPredictor(tiny.kfd().eval())
    predictor.predict_faces(_faces(predictor, 2))
    assert predictor._memory.tokens == 0
    assert predictor._memory.bytes > 0


@pytest.mark.parametrize(("limit", "free"), [("1000", 500), ("max", 10**6), (None, 10**6)])
def test_free_memory_ends_with_the_control_group(monkeypatch, tmp_path, limit, free):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(
        memory.psutil, "virtual_memory", lambda: type("V", (), {"available": 10**6})
    )
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("600\n")
        (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert memory.free_memory() == free


@pytest.mark.parametrize(
    ("text", "size"),
    [("123", 123), ("500M", 500 << 20), ("2GB", 2 << 30), ("1.5 GiB", 3 << 29), ("8k", 8192)],
)
def test_sizes_of_memory(text, size):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "much", "-1G", "1.2.3G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(typer.BadParameter, match="such as 500M or 2G"):
        memory_size(text)
