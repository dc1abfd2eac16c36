"""The tables' configuration: overrides, and errors that name field and value."""

import json
from pathlib import Path

import pytest

from eval.papers.recipes import RECIPES
from eval.papers.table_config import config_from_dict, read_tables_config

CONFIGS = Path(__file__).parents[2] / "eval/configs"
PLAIN = {"training_sets": {"A": "a"}, "tests": {"B": {"faces": "b"}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tests": {}}, "tests must name at least one set, got {}"),
        ({"training_sets": "a"}, "training_sets must be an object, got 'a'"),
        ({"speed": 3}, "speed is no setting, got the value 3"),
        ({"adapter": {"steps": 0}}, "adapter.steps must be a whole number of at least 1, got 0"),
        ({"adapter": {"steps": "9"}}, "adapter.steps must be .* got '9'"),
        ({"adapter": {"kfd_results": 1.5}}, r"adapter.kfd_results must lie in \[0, 1\], got 1.5"),
        ({"adapter": 3}, "adapter must be an object, got 3"),
        ({"detector": {"preset": "huge"}}, "detector.preset must be one of .* got 'huge'"),
        ({"detector": {"learning_rate": -1}}, "detector.learning_rate must be .* got -1"),
        ({"clip": {"modle": "x"}}, "clip.modle is no setting, got the value 'x'"),
        ({"self_blended": {"image_size": 1.5}}, "self_blended.image_size .* got 1.5"),
        ({"tests": {"B": {"split": "test"}}}, "tests.B.faces must be given"),
        ({"tests": {"B": {"faces": "b", "split": "dev"}}}, "tests.B.split .* got 'dev'"),
        ({"tests": {"B": {"faces": "./a", "split": "train"}}}, "got the training faces ./a"),
        ({"seeds": [0, 0]}, r"seeds must hold different numbers, got \[0, 0\]"),
        ({"seeds": 3}, "seeds must be a list of numbers, got 3"),
        ({"hosts": {"a": 3}}, "hosts.a must be a text that is not empty, got 3"),
        ({"tests": {"B": {"faces": 4}}}, "tests.B.faces must be a text .* got 4"),
        ({"clip": {"model": ""}}, "clip.model must be a text that is not empty, got ''"),
        ({"image_counts": [0]}, "image_counts .* got 0"),
        ({"train_images": True}, "train_images .* got True"),
    ],
)
def test_mistakes_name_field_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict({**PLAIN, **changes})


def test_what_must_be_there():
    with pytest.raises(ValueError, match="training_sets is missing"):
        config_from_dict({"tests": PLAIN["tests"]})


def test_a_table_may_differ(tmp_path):
    path = tmp_path / "config.json"
    special = {"table3": {"detector": {"steps": 7}, "seeds": [4]}}
    path.write_text(json.dumps({**PLAIN, "detector": {"batch_size": 3}, "tables": special}))
    config = read_tables_config(path, "table3")
    assert (config.detector.steps, config.detector.batch_size, config.seeds) == (7, 3, (4,))
    assert read_tables_config(path, "table4").detector.steps == 220
    path.write_text(json.dumps({**PLAIN, "seeds": [-1]}))
    with pytest.raises(ValueError, match=r"config.json: seeds .* got -1"):
        read_tables_config(path, "table3")
    with pytest.raises(FileNotFoundError, match="no configuration"):
        read_tables_config(tmp_path / "none.json", "table3")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_configurations_of_the_repository_are_valid(path):
    for table in RECIPES:
        assert RECIPES[table].rows(read_tables_config(path, table))
