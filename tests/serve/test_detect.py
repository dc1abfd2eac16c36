"""Verdicts over HTTP: the records of the command, from forms and from JSON."""

import json

import numpy as np
import pytest

from llava_forgery.infer.batch import judge_files
from tests import tiny
from tests.faces.media import video as write_video
from tests.serve.conftest import data_url, decode_grey


def post(client, data, name="face.png", **fields):
    return client.post("/v1/detect", files={"file": (name, data)}, data=fields)


def test_a_record_is_the_commands(client, predictor, png, tmp_path):
    path = tmp_path / "face.png"
    path.write_bytes(png(1))
    (expected,) = judge_files(predictor, [path], cropped=True)
    answer = post(client, png(1), cropped="true")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    wanted = {**json.loads(json.dumps(expected.to_dict())), "file": "face.png"}
    assert found["faces"][0]["p_yes"] == pytest.approx(wanted["faces"][0]["p_yes"], abs=1e-5)
    for faces in (found["faces"], wanted["faces"]):
        faces[0].pop("p_yes")
        faces[0]["score"] = round(faces[0]["score"], 5)
    assert found.pop("provenance", None) is None
    assert found == {**wanted, "model": "tiny", "sha256": found["sha256"]}


def test_json_gives_what_a_form_gives(client, png):
    form = post(client, png(2), cropped="true", masks="png").json()
    for source in (data_url(png(2)), data_url(png(2)).partition(",")[2]):
        values = {"file": source, "name": "face.png", "cropped": True, "masks": "png"}
        assert client.post("/v1/detect", json=values).json() == form


def test_masks(client, predictor, png):
    verdict = predictor.predict(tiny.picture(3), cropped=True)
    (face,) = post(client, png(3), cropped="true", masks="png").json()["faces"]
    assert np.abs(decode_grey(face["mask"]) / 255 - verdict.mask).max() < 0.5 / 255 + 1e-5
    (face,) = post(client, png(3), cropped="true", masks="rle").json()["faces"]
    assert face["mask"]["size"] == [tiny.SIZE, tiny.SIZE]
    runs = np.concatenate([np.full(n, i % 2) for i, n in enumerate(face["mask"]["counts"])])
    assert ((verdict.mask >= 0.5) == runs.reshape(tiny.SIZE, -1).T).all()


def test_a_model_by_its_name(client, png):
    assert post(client, png(1), cropped="true", model="other").json()["model"] == "other"
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert names == ["tiny", "other"]
    assert client.get("/v1/models/other").json()["id"] == "other"


def test_without_a_face_the_answer_says_what_to_do(client, png):
    answer = post(client, png(1))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "no_face"
    assert error["type"] == "invalid_request_error"
    assert "cropped" in error["message"]


def video(tmp_path, frames):
    write_video(tmp_path / "v.mp4", [tiny.picture(i) for i in range(frames)])
    return (tmp_path / "v.mp4").read_bytes()


def test_a_short_video_is_answered_at_once(client, predictor, tmp_path):
    data = video(tmp_path, 4)
    (expected,) = judge_files(predictor, [tmp_path / "v.mp4"], cropped=True)
    answer = post(client, data, "photo.jpg", cropped="true", pool="max")
    assert answer.status_code == 200, answer.text
    (face,) = answer.json()["faces"]
    wanted = [frame.score for frame in expected.faces[0].frames]
    assert [f["score"] for f in face["frames"]] == pytest.approx(wanted, abs=1e-5)
    assert face["score"] == pytest.approx(max(wanted), abs=1e-5)


def test_a_longer_video_is_a_job(client, tmp_path):
    answer = post(client, video(tmp_path, 12), "v.mp4", cropped="true")
    assert answer.status_code == 202
    job = answer.json()
    assert job["url"] == answer.headers["location"] == f"/v1/jobs/{job['id']}"
    while job["status"] in ("queued", "running"):
        job = client.get(f"/v1/jobs/{job['id']}").json()
    assert job["status"] == "done", job
    assert job["progress"] == 1
    assert len(job["result"]["faces"][0]["frames"]) == 12
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_the_state_of_the_server(client, png):
    post(client, png(1), cropped="true")
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    text = client.get("/metrics").text
    assert 'llava_forgery_faces_total{model="tiny"}' in text
    assert 'llava_forgery_requests_total{path="/v1/detect",status="200"}' in text
