"""The papers' numbers, held to the averages that the papers print beside them."""

import pytest

from eval.papers.recipes import AVERAGE, RECIPES, Row
from eval.papers.table_config import config_from_dict

CONFIG = config_from_dict(
    {
        "training_sets": {"mine": "a", "CDF2": "b"},
        "tests": {"FF++": {"faces": "c"}},
        "hosts": {"small": "d"},
        "image_counts": [20, 100],
    }
)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_have_the_papers_tests_and_averages(name):
    recipe = RECIPES[name]
    rows = recipe.rows(CONFIG)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        for figure, numbers in row.paper.items():
            assert figure in recipe.figures
            assert set(numbers) <= {*recipe.paper_tests, AVERAGE}
            if AVERAGE in numbers:
                single = [value for test, value in numbers.items() if test != AVERAGE]
                assert len(single) == len(recipe.paper_tests)
                # Table 6's printed average of Vicuna-7B is a hundredth high.
                assert numbers[AVERAGE] == pytest.approx(sum(single) / len(single), abs=0.021)


def test_paper_stands_beside_equal_counts_only():
    rows = {row.name: row for row in RECIPES["table3"].rows(CONFIG)}
    assert not rows["20 images"].paper
    assert rows["100 images"].paper["AUC"]["CDF1"] == 91.12
    assert rows["500 images"].model is None
    assert "20, 100" in rows["500 images"].reason


def test_rows_of_the_paper_that_the_configuration_lacks():
    rows = {row.name: row for row in RECIPES["table5"].rows(CONFIG)}
    assert list(rows) == ["mine", "CDF2", "FF++", "DFDCP"]
    assert rows["CDF2"].model.training_set == "CDF2"
    assert rows["FF++"].reason == "training_sets of the configuration has no 'FF++'"
    assert RECIPES["table6"].rows(CONFIG)[0].model.host == "small"


def test_a_row_runs_or_says_why_not():
    with pytest.raises(ValueError, match="either a model or a reason"):
        Row("x", None)
