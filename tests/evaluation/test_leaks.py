"""People who are tested on and were trained on."""

import logging

from torch import nn

from llava_forgery.evaluation.leaks import people_in_training
from llava_forgery.faces.identities import identity_digest


def _model(*names):
    model = nn.Sequential(nn.Linear(1, 1), nn.Identity())
    model[1].training_people = frozenset(identity_digest(name) for name in names)
    return model


def test_a_test_person_who_was_trained_on_is_told(caplog):
    model = _model("001", "Jos\u00e9", "009")
    with caplog.at_level(logging.WARNING):
        assert people_in_training(model, ["002", "Jose\u0301", "001", "001", "003"]) == 2
    assert "2 of the 4 people" in caplog.text
    assert "such as 001" in caplog.text


def test_nobody_else_is(caplog):
    with caplog.at_level(logging.WARNING):
        assert people_in_training(_model("001"), ["002", "01", "0010"]) == 0
        assert people_in_training(nn.Identity(), ["001"]) == 0
    assert not caplog.text
