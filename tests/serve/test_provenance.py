"""What files state of their origin, signed here, beside the verdict and never in it."""

import pytest

from llava_forgery.serve.media import Upload
from llava_forgery.serve.provenance import provenance, reads_provenance
from llava_forgery.serve.service import Service

pytest.importorskip("c2pa", reason="c2pa-python is not installed")
from tests.serve.signing import SIGNER, signed


def stated(data: bytes) -> dict | None:
    return provenance(Upload.of(data, "face.png"))


def changed(data: bytes) -> bytes:
    """A signed picture with one pixel's bits turned over."""
    place = data.index(b"IDAT") + 40
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_what_a_signed_file_states(png):
    found = stated(signed(png(1)))
    assert found == {
        "state": "valid",
        "signed_by": f"{SIGNER}, signer",
        "signed_at": None,
        "program": "test camera, 1",
        "actions": ["c2pa.created"],
        "sources": ["trainedAlgorithmicMedia"],
        "problems": [],
    }


def test_a_change_after_signing_is_told(png):
    found = stated(changed(signed(png(1))))
    assert found["state"] == "invalid"
    assert found["problems"] == ["assertion.dataHash.mismatch"]


@pytest.mark.parametrize("data", [b"hello", b"RIFF\0\0\0\0WEBP", b"\0" * 600])
def test_other_files_state_nothing(png, data):
    assert stated(png(1)) is stated(data) is None


def test_what_is_cut_short_is_no_fault_of_the_server(png):
    assert stated(signed(png(1))[:900])["state"] == "unreadable"


def test_it_stands_beside_the_verdict_and_changes_nothing(client, png):
    def judged(data: bytes) -> dict:
        answer = client.post("/v1/detect", files={"file": data}, data={"cropped": "true"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    plain, with_origin = judged(png(2)), judged(signed(png(2)))
    assert plain["provenance"] is None
    assert with_origin["provenance"]["state"] == "valid"
    assert with_origin["faces"] == plain["faces"]


def test_without_the_package_nothing_is_said(predictor, png, monkeypatch):
    monkeypatch.setattr("llava_forgery.serve.service.reads_provenance", lambda: False)
    assert reads_provenance()
    service = Service({"tiny": predictor})
    assert service._stated(Upload.of(signed(png(1)), "a.png")) == {}
    service.close()
