"""The page in a real browser: Chromium of the system, without a window."""

import base64
import io
import os
import re
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from llava_forgery.images import png_bytes
from llava_forgery.serve.settings import Settings
from llava_forgery.serve.site import PAGE
from tests import tiny
from tests.faces.media import video as write_video
from tests.serve.conftest import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = os.environ.get("SERVE_SHOTS")


def test_what_the_page_loads(client):
    """From this server alone, with nothing written into the page that the policy forbids."""
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in re.sub(r"<!doctype.*?>", "", page.text)
    assert not re.search(r"<script(?! type=\"module\" src=)|style=| on\w+=", page.text)
    for name in re.findall(r"(?:src|href)=\"(page/[^\"]+)\"", page.text):
        assert client.get(f"/{name}").status_code == 200
    for name in re.findall(r"data-sample=\"([^\"]+)\"", page.text):
        assert client.get(f"/page/{name}").headers["content-type"].startswith("image/")
    found = client.get("/v1/info").json()
    assert found["models"] == ["tiny", "other"]
    assert set(found["versions"]) == {"llava-forgery", "torch", "transformers"}
    assert not any("innerHTML" in path.read_text() for path in PAGE.glob("*.js"))


def test_explanations_are_maps(client, png):
    pytest.importorskip("pytorch_grad_cam")
    answer = client.post("/v1/explain", files={"file": png(1)}, data={"cropped": "true"})
    (face,) = answer.json()["faces"]
    assert face["grad_cam"]
    assert [layer["tap"] for layer in face["consistency"]] == ["1", "2", "3"]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _shot(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def _serious(page):
    """Serious violations that axe finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    bad = [v for v in found if v["impact"] in ("serious", "critical")]
    return [(v["id"], v["nodes"][0]["html"]) for v in bad]


@pytest.mark.slow
def test_a_person_uses_the_page(browser, predictor, tmp_path):
    from playwright.sync_api import expect

    name = "<img src=x onerror=document.title='owned'>.png"
    (tmp_path / name).write_bytes(png_bytes(tiny.picture(1, 128), "test"))
    write_video(tmp_path / "v.mp4", [tiny.picture(i % 5, 128) for i in range(24)])
    with running({"tiny": predictor}, Settings()) as (_, url):
        page = browser.new_page(accept_downloads=True)
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        # A picture that shows no face says what can be done.
        page.set_input_files("#file", tmp_path / name)
        expect(page.locator("#problem")).to_contain_text("no face")
        said.clear()
        page.check("#cropped")
        page.wait_for_selector("#result:not([hidden])")
        assert name in page.inner_text("#status")
        assert page.inner_text("#band")
        assert "P(yes)" in page.inner_text("#figures")
        assert page.inner_text("#agreement")
        _shot(page, "verdict")
        before = page.evaluate("document.querySelector('#canvas').toDataURL()")
        page.select_option("#map", "none")
        drawn = "document.querySelector('#canvas').toDataURL()"
        page.wait_for_function(f"before => {drawn} !== before", arg=before)
        page.click("#explain")
        page.wait_for_selector("#map option[value='grad-cam']", state="attached")
        expect(page.locator("#map")).to_have_value("grad-cam")
        for turn, question in enumerate(("Is this a deepfake image?", "<b>Why?</b>"), start=1):
            page.fill("#question", question)
            page.keyboard.press("Enter")
            # Both lines first: until the page has begun, its buttons are those of the last answer.
            expect(page.locator("#log li")).to_have_count(2 * turn)
            expect(page.locator("#send")).to_be_enabled()
        log = page.inner_text("#log")
        assert "<b>Why?</b>" in log
        assert page.locator("#log li").count() == 4
        assert page.locator("#log li.answer").last.inner_text().strip() not in ("", "Model")
        assert _serious(page) == []
        with page.expect_download() as download:
            page.click("#report")
        report = Path(download.value.path()).read_text(encoding="utf-8")
        record = httpx.post(f"{url}/v1/detect", files={"file": (tmp_path / name).read_bytes()},
                            data={"cropped": "true"}).json()  # fmt: skip
        assert record["sha256"] in report
        assert "&lt;img src=x onerror" in report
        assert "<img src=x" not in report
        assert "&lt;b&gt;Why?" in report
        assert "data:image/jpeg;base64," in report
        assert "transformers" in report
        assert page.title() == "llava-forgery"
        assert said == []
        _shot(page, "talked")

        # A video, at a phone's width, in the dark.
        page.set_viewport_size({"width": 360, "height": 740})
        page.emulate_media(color_scheme="dark")
        page.set_input_files("#file", tmp_path / "v.mp4")
        page.wait_for_selector("#plot .dot")
        # What explained the last file is not offered for this one.
        expect(page.locator("#map")).to_have_value("mask")
        page.wait_for_selector("#result:not([hidden])")
        expect(page.locator("#plot .dot")).to_have_count(24)
        page.locator("#plot .dot").nth(20).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#plot .dot").nth(20)).to_have_attribute("aria-pressed", "true")
        with page.expect_download() as download:
            page.click("#report")
        report = Path(download.value.path()).read_text(encoding="utf-8")
        assert report.count("<svg") == report.count('alt="The picture with the map') == 1
        assert report.count('class="dot"') == 24
        # A frame of the video, and not an empty canvas.
        picture = re.search(r"data:image/jpeg;base64,([^\"]+)", report)[1]
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert pixels.shape[0] == pixels.shape[1] >= 128
        assert pixels.std() > 10
        report_page = browser.new_page()
        report_page.set_content(report)
        assert _serious(report_page) == []
        _shot(report_page, "report")
        report_page.close()
        assert _serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        _shot(page, "video")
        page.close()


@pytest.mark.slow
def test_the_page_asks_for_a_token(browser, predictor):
    from playwright.sync_api import expect

    with running({"tiny": predictor}, Settings(token="secret")) as (_, url):
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#token-form:not([hidden])")
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#token-form")).to_be_hidden()
        expect(page.locator("#problem")).to_be_empty()
        page.close()
