import json

import pytest

from llava_forgery.train.recipe import Stage1Recipe, read_recipe


def _read(tmp_path, values):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(values))
    return read_recipe(path)


def test_what_is_not_named_is_the_default(tmp_path):
    assert _read(tmp_path, {}) == Stage1Recipe()
    recipe = _read(
        tmp_path,
        {"simulator": {"swap": 0.2}, "framing": {"margin": [0.1, 0.5]}, "average": 0.99},
    )
    assert recipe.simulator.swap == 0.2
    assert recipe.simulator.poisson == Stage1Recipe().simulator.poisson
    assert recipe.framing.margin == (0.1, 0.5)
    assert recipe.average == 0.99


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"simulater": {}}, "has no simulater; it has simulator, framing"),
        ({"degradation": {"codec": 1}}, "degradation of .* has no codec; it has probability"),
        ({"simulator": {"swap": 2}}, "swap is a probability"),
        ([], "must be a JSON object"),
        ({"weights": 1}, "weights of .* must be a JSON object"),
    ],
)
def test_a_wrong_recipe_is_an_error(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, values)
