"""The reading room in a real browser: what a reader does, with a mouse, with the keyboard, and with a hostile book."""

import itertools
import os
import re
import shutil

import pytest
from make_books import pdf_bytes
from serving import serving

from mamba_ssm.book import Engine, Shelf

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FILLER = "The {} was swept, the lamps were lit, and the {} went home along the river before the rain came."
PLACES = ["hall", "court", "library", "stable", "kitchen", "chapel", "tower", "cellar"]
PEOPLE = ["clerk", "cook", "mason", "smith", "porter", "weaver", "gardener", "piper"]
GATE = "The old oak stands at the north gate of the monastery, beside the well."
FLOUR = "Brother Anselm bought nineteen barrels of chlorinated flour in the spring of 1742."
EVIL = """# Evil

<script>window.hacked = 1</script> The treasure is buried under <img src=x onerror="window.hacked = 2"> the stone lion
at the <b onclick="window.hacked = 3">south</b> door. {{constructor}} ${window.hacked = 4} <svg onload=window.hacked=5>
"""


def filler(n):
    return [FILLER.format(PLACES[i % 8], PEOPLE[(i * 3 + i // 8) % 8]) for i in range(n)]


def markdown():
    chapters = [f"# Chapter {n}. The {PLACES[n - 1]}\n\n" + "\n\n".join(filler(24)) for n in range(1, 9)]
    chapters[5] += f"\n\nIn those days it was so. {GATE} Nobody knew who had planted it."
    return "\n\n".join(chapters)


def pdf():
    """Pages of short lines; on the third one a word is divided, and there is a running head."""
    pages = [["The Chronicle", *[half for line in filler(20) for half in (line[:48], line[48:])]] for _ in range(5)]
    pages[2][10:10] = [FLOUR[: FLOUR.index("inated")] + "-", FLOUR[FLOUR.index("inated") :]]
    return pdf_bytes(pages, [(f"Year {n}", n) for n in range(5)])


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium; CHROMIUM names it where it is not on the path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reader():
    return Engine.load(None, "cpu")


@pytest.fixture(scope="module")
def served(reader, tmp_path_factory):
    with Shelf.open(tmp_path_factory.mktemp("shelf"), reader) as shelf, serving(reader, shelf=shelf) as served:
        yield served


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "monastery.md").write_text(markdown())
    (folder / "chronicle.pdf").write_bytes(pdf())
    (folder / "evil.md").write_text(EVIL)
    return folder


@pytest.fixture
def visit(browser, served):
    """Opens the room in a fresh window, and fails where the browser complained."""
    contexts, complaints = [], []

    def opened(url=served.url, **options):
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    # A refused key is part of a test, and the browser writes down the refusal.
    assert [line for line in complaints if "401" not in line] == []


def bring(page, path):
    page.set_input_files("#file", path)
    title = page.locator("#book-title")
    page.wait_for_function("name => document.getElementById('book-title').textContent === name", arg=path.stem)
    return title


def put(page, question):
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .strip")
    page.wait_for_selector(".band rect", state="attached")
    return page.locator(".turn").last


def words(text):
    return re.findall(r"\w+", text)


def marked(page):
    """The words that are highlighted in the opened book."""
    page.wait_for_selector("#leaf mark")
    return words(" ".join(page.locator("#leaf mark").all_text_contents()))


def test_a_book_is_brought_read_and_asked_and_a_citation_opens_it_at_its_evidence(visit, files, served):
    page = visit()
    assert page.locator("#empty").is_visible()
    bring(page, files / "monastery.md")
    turn = put(page, "Where does the old oak stand?")
    assert "north gate" in turn.locator(".answer").text_content()
    assert re.search(r"in 10 such answers", turn.locator(".sureness").text_content())
    page.click("#close")
    turn.locator(".cite").first.click()
    assert "Chapter 6" in page.locator("#place").text_content()
    book = served.http.get("/v1/books").json()["data"][0]["id"]
    answer = served.http.post(f"/v1/books/{book}/ask", json={"question": "Where does the old oak stand?"}).json()
    number = int(turn.locator(".cite").first.text_content())
    passage = answer["evidence"][number - 1]
    # A mark may divide a word only where the passage does.
    assert "".join(marked(page)) == "".join(words(passage["text"]))
    assert "".join(page.locator("#leaf mark.answer").all_text_contents()) == answer["answer"]
    box, leaf = page.locator("#leaf mark.answer").bounding_box(), page.locator("#leaf").bounding_box()
    page.wait_for_timeout(800)  # a smooth scroll
    box = page.locator("#leaf mark.answer").bounding_box()
    assert leaf["y"] < box["y"] < leaf["y"] + leaf["height"]


def test_the_strip_shows_where_the_evidence_lies(visit, files, served):
    page = visit()
    bring(page, files / "monastery.md")
    turn = put(page, "Where does the old oak stand?")
    band = turn.locator(".band").bounding_box()
    hottest = turn.evaluate(
        """turn => { const rects = [...turn.querySelectorAll('.band rect')];
        const best = rects.reduce((a, b) => +a.getAttribute('fill-opacity') > +b.getAttribute('fill-opacity') ? a : b);
        const box = best.getBoundingClientRect(); return box.x + box.width / 2; }"""
    )
    share = markdown().index(GATE) / len(markdown())
    assert (hottest - band["x"]) / band["width"] == pytest.approx(share, abs=0.02)
    pins = [pin.bounding_box() for pin in turn.locator(".pin").all()]
    assert len(pins) == turn.locator(".passage").count()
    middles = sorted(pin["x"] + pin["width"] / 2 for pin in pins)
    assert all(b - a >= 15 for a, b in itertools.pairwise(middles))  # none covers another's number
    page.mouse.click(band["x"] + band["width"] * 0.02, band["y"] + 5)
    page.wait_for_function("() => document.getElementById('place').textContent.includes('Chapter 1')")


def test_a_pdf_opens_at_its_page_with_the_words_boxed(visit, files, served):
    page = visit()
    bring(page, files / "chronicle.pdf")
    turn = put(page, "How many barrels of flour did Brother Anselm buy?")
    assert turn.locator(".answer").text_content().startswith("nineteen")
    turn.locator(".cite").first.click()
    page.wait_for_function("() => document.activeElement.id === 'place'")  # it is drawn
    assert page.locator("#place").text_content().startswith("page 3 of 5")
    image, box = page.locator(".sheet img").bounding_box(), page.locator(".box.answer").bounding_box()
    # The line of the page that the answer is printed on: the twelfth, counted with the running head.
    (line,) = [i for i, text in enumerate(pages_lines()) if "nineteen" in text]
    baseline = (792 - (720 - 14 * line)) / 792
    assert (box["y"] + box["height"] / 2 - image["y"]) / image["height"] == pytest.approx(baseline, abs=0.008)
    assert box["width"] < image["width"] * 0.2
    page.click("#as-text")
    assert "chlorinated" in " ".join(marked(page))
    page.click("#as-page")
    page.wait_for_selector(".sheet")
    page.click("#later")
    page.wait_for_function("() => document.getElementById('place').textContent.startsWith('page 4 of 5')")
    assert page.locator(".box").count() == 0


def pages_lines():
    lines = ["The Chronicle", *[half for line in filler(20) for half in (line[:48], line[48:])]]
    lines[10:10] = [FLOUR[: FLOUR.index("inated")] + "-", FLOUR[FLOUR.index("inated") :]]
    return lines


def test_what_a_book_does_not_tell_is_said(visit, files):
    page = visit()
    bring(page, files / "monastery.md")
    turn = put(page, "What is the melting point of tungsten in kelvin?")
    assert turn.locator(".answer.none").text_content() == "The book does not seem to tell."
    assert turn.locator(".sureness").count() == 0


def test_a_hostile_book_is_text_and_nothing_else(visit, files):
    page = visit()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    bring(page, files / "evil.md")
    turn = put(page, "Where is the treasure buried?")
    turn.locator(".passage").first.click()
    assert "window" in marked(page)
    assert "onerror" in page.locator("#leaf").text_content()
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None
    assert page.locator("#leaf :is(img, script, svg, b)").count() == 0
    assert not [url for url in requests if url.endswith("/x")]


def test_the_keyboard_alone_is_enough(visit, files):
    page = visit(viewport={"width": 1100, "height": 800})
    bring(page, files / "monastery.md")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("Where does the old oak stand?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .strip")
    page.wait_for_function("() => document.getElementById('said').textContent.includes('north gate')")
    for _ in range(60):  # back from the question to the first citation
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.className") == "cite":
            break
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Passage")
    page.keyboard.press("Enter")
    page.wait_for_selector("#leaf mark")
    page.wait_for_function("() => document.activeElement.id === 'place'")
    page.keyboard.press("Escape")
    assert page.locator("#lectern").is_hidden()
    assert page.evaluate("document.activeElement.className") == "cite"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "slider":
            break
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "Chapter 1" in page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('place').textContent.includes('Chapter 1')")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"


def test_everything_that_can_be_used_has_a_name(visit, files):
    page = visit()
    bring(page, files / "monastery.md")
    put(page, "Where does the old oak stand?")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, a, [role=slider], [tabindex="0"]')]
        .filter(node => node.checkVisibility() && !(node.textContent.trim() || node.getAttribute('aria-label')
          || node.labels?.length)).map(node => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 1
    assert page.locator("main").count() == 1


def contrast(page, selector):
    """WCAG's ratio of a text's colour to the first opaque colour behind it."""
    return page.evaluate(
        """selector => {
          const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const light = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          let node = document.querySelector(selector);
          const front = light(getComputedStyle(node).color);
          while (/rgba\\(.*, 0\\)/.test(getComputedStyle(node).backgroundColor)) node = node.parentElement;
          const back = light(getComputedStyle(node).backgroundColor);
          return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(visit, files, scheme):
    page = visit(color_scheme=scheme)
    bring(page, files / "monastery.md")
    put(page, "Where does the old oak stand?")
    page.wait_for_selector("#leaf mark.answer")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    # The button's colour is not the one under the mouse.
    for selector in (".answer", ".sureness", ".cite", ".turn h3", ".legend", "#place", "#leaf p", "#leaf mark",
                     "#leaf mark.answer", ".where", "#ask button", ".more"):  # fmt: skip
        assert contrast(page, selector) >= 4.5, selector


def test_a_narrow_screen_shows_one_thing_at_a_time(visit, files):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True)
    bring(page, files / "monastery.md")
    turn = put(page, "Where does the old oak stand?")
    assert page.locator("#lectern").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    turn.locator(".cite").first.click()
    page.wait_for_selector("#leaf mark")
    assert page.locator("#lectern").bounding_box()["width"] == 360
    assert page.evaluate("document.getElementById('desk').inert")
    page.click("#close")
    assert not page.evaluate("document.getElementById('desk').inert")
    assert page.evaluate("document.activeElement.className") == "cite"


def test_nothing_moves_for_those_who_want_that(visit, files):
    page = visit(reduced_motion="reduce")
    bring(page, files / "monastery.md")
    put(page, "Where does the old oak stand?")
    assert page.evaluate("document.getAnimations().length") == 0
    assert page.evaluate("getComputedStyle(document.querySelector('.turn')).animationName") == "none"


def test_a_conversation_is_taken_along(visit, files):
    page = visit()
    bring(page, files / "monastery.md")
    assert page.locator("#export").is_hidden()
    put(page, "Where does the old oak stand?")
    page.click("#export summary")
    with page.expect_download() as waiting:
        page.click("[data-format=markdown]")
    written = waiting.value.path().read_text()
    assert waiting.value.suggested_filename == "conversation.md"
    assert "## Where does the old oak stand?" in written
    assert "the north gate" in written
    page.click("#export summary")
    with page.expect_download() as waiting:
        page.click("[data-format=bibtex]")
    assert "title = {monastery}" in waiting.value.path().read_text()


def test_a_file_that_is_no_book_says_so_on_the_shelf(visit, tmp_path):
    page = visit()
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nonsense")
    page.set_input_files("#file", tmp_path / "broken.pdf")
    page.wait_for_selector(".arrival.failed")
    assert "damaged PDF" in page.locator(".arrival").text_content()
    page.click(".arrival button")
    assert page.locator(".arrival").count() == 0


def test_a_dropped_book_is_read_and_a_removed_one_is_gone(visit):
    page = visit()
    data = page.evaluate_handle(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['The pond behind the mill is nine feet deep in March.'], 'pond.txt'));
          return data;
        }"""
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": data})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    assert page.locator("#drop").is_hidden()
    page.wait_for_function("() => document.getElementById('book-title').textContent === 'pond'")
    page.get_by_role("button", name="Remove pond").click()
    assert page.get_by_role("button", name="Remove pond").is_visible()  # it asks once more
    page.get_by_role("button", name="Remove pond").click()
    page.wait_for_function(
        "() => ![...document.querySelectorAll('.book .name')].some(node => node.textContent === 'pond')"
    )
    assert page.locator("#conversation").is_hidden()


def test_who_writes_to_a_book_is_not_disturbed_by_another_that_arrives(visit, files, tmp_path):
    page = visit()
    bring(page, files / "monastery.md")
    page.fill("#question", "Where does")
    (tmp_path / "lamp.txt").write_text("The lamp in the attic burns whale oil, and smokes.")
    page.set_input_files("#file", tmp_path / "lamp.txt")
    page.get_by_role("button", name="lamp", exact=False).first.wait_for()
    assert page.locator(".arrival").count() == 0
    assert page.locator("#book-title").text_content() == "monastery"
    assert page.input_value("#question") == "Where does"


def test_a_room_with_a_key_asks_for_it(visit, reader, tmp_path):
    with Shelf.open(tmp_path, reader) as shelf, serving(reader, shelf=shelf, api_key="sesame") as locked:
        page = visit(locked.url)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('key').value === ''")
        page.fill("#key", "sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog", state="hidden")
        page.set_input_files("#file", {"name": "tea.txt", "mimeType": "", "buffer": b"The tea is green and hot."})
        page.wait_for_function("() => document.getElementById('book-title').textContent === 'tea'")
