from dataclasses import fields

import numpy as np
import pytest
import torch

from llava_forgery.simulate.config import SimulatorConfig
from llava_forgery.simulate.drawing import FaceDrawer
from llava_forgery.simulate.masks import plan_outlines, soft_mask
from llava_forgery.simulate.plan import draw_plans
from llava_forgery.simulate.simulator import ForgerySimulator
from tests import tiny

SIZE = 64


@pytest.fixture(scope="module")
def workers():
    drawer = FaceDrawer(SimulatorConfig(), workers=2)
    yield drawer
    drawer.close()


def _faces(count):
    return np.stack([np.float32(tiny.landmarks(SIZE) + i) for i in range(count)])


@pytest.mark.parametrize("count", [1, 5])
def test_workers_draw_what_one_face_alone_would_get(workers, count):
    landmarks, seeds = _faces(count), range(10, 10 + count)
    for drawer in (FaceDrawer(SimulatorConfig()), workers):
        plans, masks = drawer(seeds, landmarks, (SIZE, SIZE))
        assert len(plans) == len(masks) == count
        for i, seed in enumerate(seeds):
            plan = next(draw_plans(SimulatorConfig(), seed))
            for field in fields(plan):
                np.testing.assert_array_equal(
                    getattr(plans[i], field.name), getattr(plan, field.name)
                )
            (outlines,) = plan_outlines([plan], landmarks[i : i + 1], (SIZE, SIZE))
            alone = soft_mask(outlines, plan.softness * SIZE, (SIZE, SIZE))
            assert alone.values.any()
            assert masks[i][:2] == alone[:2]
            np.testing.assert_array_equal(masks[i].values, alone.values)


def test_the_simulator_forges_the_same_with_workers(workers):
    images = torch.stack(
        [torch.from_numpy(tiny.picture(i)).permute(2, 0, 1) for i in range(4)]
    ).float()
    landmarks = torch.from_numpy(_faces(4))
    plain = ForgerySimulator(renderer="torch")
    shared = ForgerySimulator(renderer="torch", workers=2)
    shared.drawer = workers  # started already
    expected, made = (one(images / 255, landmarks, range(4)) for one in (plain, shared))
    assert made.regions == expected.regions
    assert all(torch.equal(a, b) for a, b in zip(made[:3], expected[:3], strict=True))


def test_a_closed_drawer_can_be_closed_again_and_none_has_less_than_no_worker():
    drawer = FaceDrawer(SimulatorConfig())
    drawer.close()
    drawer.close()
    with pytest.raises(ValueError, match="0 or more, got -1"):
        ForgerySimulator(workers=-1)
