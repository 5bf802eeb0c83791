"""The page in a real browser: asking, correcting, keyboard, both languages, a narrow screen, hostile texts.

Needs Playwright (a tool of the tests alone) and Chromium; without them it is skipped.
"""

import shutil
import socket
import threading
from pathlib import Path

import pytest
import uvicorn
from served import Client, FakeVersion, png

from hidecmoe_jax.operate.decision_log import open_log, read_log
from hidecmoe_jax.operate.kept_pictures import KeptPictures
from hidecmoe_jax.operate.operation import Operation
from hidecmoe_jax.serve.options import ServeOptions
from hidecmoe_jax.serve.page_routes import Page
from hidecmoe_jax.serve.recorder import Recorder

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> {name}"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def served(tmp_path):
    """Address and log of a server whose answers are the questions."""
    folder = tmp_path / "log"
    options = ServeOptions(log=folder, keep_pictures=30, review_share=1.0)
    with open_log(folder) as log:
        operation = Operation("birds", log)
        recorder = Recorder(operation, options, KeptPictures(folder, 30))
        page = Page(tmp_path / "run", "birds", operation)
        with (
            Client(FakeVersion(), record=recorder.record, operation=operation, page=page) as client,
            socket.socket() as listener,
        ):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            server = uvicorn.Server(uvicorn.Config(client.app, log_level="error", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", folder
            server.should_exit = True
            thread.join(10)


def opened(browser, address: str, width: int, locale: str):
    """A page, and the list of everything that a hostile text or a broken script would show."""
    page = browser.new_context(viewport={"width": width, "height": 800}, locale=locale).new_page()
    trouble: list[str] = []
    page.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("nav button")
    return page, trouble


def decisions(folder: Path) -> list[tuple]:
    return [(line["decision"], line["task"], line["answer"]) for line in read_log(folder) if line["kind"] == "review"]


def test_a_picture_is_asked_about_corrected_and_reviewed_with_the_keyboard(browser, served, tmp_path):
    address, folder = served
    (tmp_path / "a.png").write_bytes(png())
    page, trouble = opened(browser, address, 1280, "en-US")
    page.set_input_files("input[type=file] >> nth=0", tmp_path / "a.png")
    page.fill("#question", HOSTILE)
    page.press("#question", "Enter")
    page.wait_for_selector("#answer")
    # The server of this test answers with the question, before it the marker of the picture.
    assert page.inner_text("#answer").endswith(HOSTILE) and page.inner_text(".fit") == "barely fits"
    assert page.locator("main script, main img[src='x']").count() == 0

    page.click("text=Wrong task")
    page.select_option("select", "birds")
    page.click("text=Ask this task")
    page.locator("#answer").wait_for()
    page.click("text=Wrong answer")
    page.fill("form.row input", "a robin")
    page.press("form.row input", "Enter")
    page.wait_for_selector("text=it is recorded")
    assert decisions(folder) == [("other_task", "birds", None), ("answer", None, "a robin")]

    page.fill("#question", "Is this right?")
    page.press("#question", "Enter")
    page.locator("#answer", has_text="Is this right?").wait_for()
    # From the tabs to the card and its decision by keys alone.
    page.focus("nav button[data-tab=ask]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("article.card")
    page.keyboard.press("Tab")
    page.locator("article.card:focus").wait_for()
    page.keyboard.press("1")
    page.wait_for_selector("article.card >> text=it is recorded")
    assert decisions(folder)[-1] == ("right", None, None)
    assert trouble == []


@pytest.mark.parametrize(("width", "locale", "word"), [(390, "ja-JP", "確認待ち"), (1280, "en-US", "To check")])
def test_every_tab_fits_the_screen_in_its_language(browser, served, width, locale, word):
    address, _ = served
    page, trouble = opened(browser, address, width, locale)
    page.fill("#question", "A-very-long-word-without-a-break" * 12)
    page.press("#question", "Enter")
    page.wait_for_selector("#answer")
    assert page.inner_text("nav button[data-tab=inbox]") == word
    for tab in ("ask", "inbox", "health", "tasks", "threshold"):
        page.click(f"nav button[data-tab={tab}]")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        assert "undefined" not in page.inner_text("body")
    page.click("#language")
    page.locator("html[lang=en]" if locale == "ja-JP" else "html[lang=ja]").wait_for(state="attached")
    assert trouble == []
