"""Fixtures that the tests of rendering share."""

import pytest

from tests.hosts.transformers.rendering import HOSTS, Host


@pytest.fixture(params=HOSTS, scope="module")
def host(request) -> Host:
    return HOSTS[request.param]()
