import pytest
import torch

from llava_forgery.constants import REGION_NAMES, WHOLE_FACE
from llava_forgery.simulate.simulator import ForgerySimulator, SimulatorConfig
from tests import tiny


def _inputs(count=4):
    images = torch.stack([torch.from_numpy(tiny.picture(i)).permute(2, 0, 1) for i in range(count)])
    landmarks = torch.from_numpy(tiny.landmarks()).expand(count, -1, -1)
    return images.float() / 255, landmarks


def _forge(seed=0, count=4, **config):
    images, landmarks = _inputs(count)
    simulator = ForgerySimulator(SimulatorConfig(**config))
    return simulator(images, landmarks, torch.Generator().manual_seed(seed))


def test_shapes_and_ranges():
    forged = _forge(count=6)
    assert forged.image.shape == forged.pristine.shape == (6, 3, 64, 64)
    assert forged.mask.shape == (6, 1, 64, 64)
    for tensor in (forged.image, forged.pristine, forged.mask):
        assert tensor.dtype == torch.float32
        assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    assert len(forged.regions) == 6


def test_pristine_equals_forged_where_the_mask_is_zero():
    forged = _forge(count=12, poisson=0.5)
    difference = (forged.image - forged.pristine).abs()
    assert float(difference[(forged.mask == 0).expand_as(difference)].max()) < 1e-6
    inside = (forged.mask > 0.5).expand_as(difference)
    assert 255 * float(difference[inside].mean()) > 2


def test_same_seed_same_forgery_and_other_seed_another():
    first, second, other = _forge(3), _forge(3), _forge(4)
    assert torch.equal(first.image, second.image)
    assert first.regions == second.regions
    assert not torch.equal(first.image, other.image)


def test_a_sample_depends_on_its_own_generator_alone():
    images, landmarks = _inputs(3)
    simulator = ForgerySimulator()

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]

    together = simulator(images, landmarks, generators())
    alone = simulator(images[1:2], landmarks[1:2], generators()[1:2])
    assert torch.equal(together.image[1:2], alone.image)
    assert together.regions[1:2] == alone.regions


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    _forge()
    assert torch.equal(before, torch.random.get_rng_state())


def test_regions_are_one_to_three_known_names_in_order():
    seen = set()
    for regions in _forge(count=40).regions:
        assert 1 <= len(regions) <= 3
        assert list(regions) == [name for name in REGION_NAMES if name in regions]
        assert WHOLE_FACE not in regions or regions == (WHOLE_FACE,)
        seen.update(regions)
    assert seen == set(REGION_NAMES)


def test_faint_forgeries_are_drawn_anew():
    faint = {"rgb": 0.0, "hue": 0.0, "brightness": 0.0, "contrast": (1.0, 1.0),
             "saturation": (1.0, 1.0), "angle": 0.0, "shift": 0.0, "scale": (1.0, 1.0),
             "sharpness": (-1.0, 1.0)}  # fmt: skip
    weak = _forge(count=4, min_difference=0.0, **faint)
    strong = _forge(count=4, min_difference=12.0, max_draws=16, **faint)

    def change(forged):
        inside = (forged.mask > 0.5).expand_as(forged.image)
        return float((forged.image - forged.pristine).abs()[inside].mean())

    assert change(strong) > change(weak)


def test_recoloured_background_is_the_pristine_image():
    """Whatever side is recoloured, the pair differs inside the mask alone."""
    images, _ = _inputs()
    forged = _forge(on_foreground=0.0)
    assert not torch.allclose(forged.pristine, images, atol=0.01)
    forged = _forge(on_foreground=1.0)
    assert torch.equal(forged.pristine, images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "expected float images"),
        ({"images": torch.full((2, 3, 64, 64), 255.0)}, "divide bytes by 255"),
        ({"landmarks": torch.zeros(2, 5, 2)}, r"landmarks \(2, 68, 2\)"),
        ({"generator": [torch.Generator()]}, "one for each of the 2 images"),
        ({"landmarks": torch.full((2, 68, 2), -500.0)}, "inside the image"),
    ],
)
def test_wrong_input_is_an_error(change, message):
    images, landmarks = _inputs(2)
    values = {"images": images, "landmarks": landmarks, "generator": torch.Generator(), **change}
    with pytest.raises(ValueError, match=message):
        ForgerySimulator()(**values)


@pytest.mark.parametrize(
    "values",
    [{"max_regions": 0}, {"poisson": 1.5}, {"scale": (1.1, 0.9)}, {"opacity": ()},
     {"softness": (0.0, 0.1)}],
)  # fmt: skip
def test_wrong_configuration_is_an_error(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SimulatorConfig(**values)
