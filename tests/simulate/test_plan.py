from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from llava_forgery.constants import WHOLE_FACE
from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.plan import KINDS, REENACTMENT, SELF, SWAP, TEXTURES, draw_plans


def _plans(seed, count=3, **config):
    return list(islice(draw_plans(SimulatorConfig(**config), seed), count))


def _same(one, two):
    arrays = ("displacement", "draws")
    values = [
        {**vars(plan), **{name: getattr(plan, name).tolist() for name in arrays}}
        for plan in (one, two)
    ]
    return values[0] == values[1]


def test_plans_follow_from_the_seed():
    first, again, other = _plans(3), _plans(3), _plans(4)
    assert all(_same(one, two) for one, two in zip(first, again, strict=True))
    assert not _same(first[0], first[1])
    assert not _same(first[0], other[0])


def test_numbers_stay_in_their_ranges_and_fill_them():
    config = SimulatorConfig()
    plans = _plans(0, 400)
    for name in ("growth", "deformation", "softness", "scale", "saturation", "contrast"):
        low, high = getattr(config, name)
        values = [getattr(plan, name) for plan in plans]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    for name, limit in (("angle", config.angle), ("blue", config.rgb), ("shift_y", config.shift)):
        values = np.array([getattr(plan, name) for plan in plans])
        assert 0.9 * limit < np.abs(values).max() <= limit
        assert abs(values.mean()) < 0.2 * limit
    assert {plan.opacity for plan in plans} == set(config.opacity)
    assert {plan.displacement.shape[1] for plan in plans} == set(range(4, 11))
    qualities = [plan.jpeg for plan in plans if plan.jpeg]
    assert 50 <= min(qualities) < max(qualities) <= 95
    assert 0.1 < len(qualities) / 400 < 0.3
    assert 0.2 < np.mean([plan.poisson for plan in plans]) < 0.4
    assert all((plan.sharpness > 0) != (plan.downscale > 1) for plan in plans)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": ("ear",)}, "regions must be some of"),
        ({"regions": ()}, "regions must be some of"),
        ({"displacement": np.zeros((3, 4, 4), np.float32)}, r"displacement must be \(2, n, n\)"),
        ({"softness": 0.0}, "softness must be over 0"),
        ({"jpeg": 101}, "jpeg 0 to 100"),
        ({"kind": "paint"}, "kind must be one of self, swap, reenactment"),
        ({"draws": np.zeros(3)}, r"\(3,\)"),
    ],
)
def test_wrong_plan_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(_plans(0)[0], **change)


def test_kinds_have_their_shares_and_their_regions():
    plans = _plans(0, 400, swap=0.3, reenactment=0.3, texture=0.5)
    by_kind = {kind: [p for p in plans if p.kind == kind] for kind in KINDS}
    for kind, share in ((SELF, 0.4), (SWAP, 0.3), (REENACTMENT, 0.3)):
        assert len(by_kind[kind]) / 400 == pytest.approx(share, abs=0.08)
    # A swap is of the whole face more often than a self-blend.
    assert np.mean([p.regions == (WHOLE_FACE,) for p in by_kind[SWAP]]) > 0.6
    for plan in by_kind[REENACTMENT]:
        assert "mouth" in plan.regions or plan.regions == (WHOLE_FACE,)
    assert {p.texture for p in plans} == set(TEXTURES)
    assert np.mean([p.texture != "camera" for p in plans]) == pytest.approx(0.5, abs=0.08)


def test_without_kinds_the_plans_of_a_seed_are_self_blends():
    assert all(p.kind == SELF and p.texture == "camera" for p in _plans(0, 20))
