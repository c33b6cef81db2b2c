"""The page for checking, in a browser: it shows, corrects, saves and trusts nothing."""

import json

import pytest

from browser import CHROMIUM, Browser
from mail import write_mail
from support.export_command import HOSTILE, export, write

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")

LISTED = "[...list.querySelectorAll('.page')].map((row) => row.innerText)"
TITLE = "panel.querySelector('h2 bdi').textContent"
CURRENT = "list.querySelector('[aria-current]').innerText.split('\\n')"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def window(downloads):
    with Browser(downloads=downloads) as browser:
        yield browser


@pytest.fixture(scope="module")
def mail(tmp_path_factory):
    """The records of a folder of mail, and their page."""
    folder = tmp_path_factory.mktemp("mail")
    records, out = write_mail(folder), folder / "out"
    assert export(records, "html", out) == 0
    return records, out


@pytest.fixture
def show(window):
    """Opens a page without what it remembers of an earlier test."""

    def show(out):
        window.open((out / "index.html").as_uri())
        window.run("localStorage.clear()")
        window.requested.clear()
        window.messages.clear()
        window.open((out / "index.html").as_uri())
        return window

    yield show
    assert not window.messages


@pytest.fixture
def page(show, mail):
    return show(mail[1])


def focus(page, field):
    """Put the focus into the input of a field."""
    label = f"span.textContent === {json.dumps(field)}"
    page.run(
        f"[...panel.querySelectorAll('label > span')].find((span) => {label})"
        ".nextSibling.focus()"
    )


def saved(page, downloads):
    file = downloads / "corrections.jsonl"
    file.unlink(missing_ok=True)
    page.run("window.showSaveFilePicker = undefined")
    page.press("s")
    page.wait(file.exists, "a download")
    page.wait(lambda: page.run("byId('status').textContent") == "Saved.", "Saved.")
    return file


def test_pages_are_beside_their_answers_and_what_to_look_at_is_marked(page):
    assert page.run("byId('title').textContent") == "10 pages, 9 documents"
    counts = page.run("byId('filters').textContent")
    assert counts == "All10Errors2Cut1Empty2Differ1Corrected0"
    # The largest disagreement is first.
    assert page.run(TITLE) == "Nordlicht 2024-031.pdf"
    assert "5.7 % of the characters" in page.run("panel.innerText")
    rows = page.run(LISTED)
    for mark in ("5.7 %", "blank", "empty", "error\ncut", "\u21bb 90\u00b0"):
        assert len([row for row in rows if row.endswith(mark)]) == 1
    seen = set()
    for _ in rows:
        page.wait(
            lambda: page.run(
                "[...paper.querySelectorAll('img')].every(i => i.complete)"
            ),
            "an image",
        )
        seen.add(page.run("paper.firstChild.naturalHeight ?? paper.innerText"))
        page.press("j")
    assert 1600 in seen
    (words,) = [words for words in seen if isinstance(words, str)]
    assert words == "There is no page."
    assert all(url.startswith("file:") for url in page.requested)


def test_keys_go_through_the_pages(page):
    first = page.run(TITLE)
    page.press("j")
    assert page.run(TITLE) == "Harbour 4711-08.pdf"
    page.press("ArrowUp")
    assert page.run(TITLE) == first
    page.press("k")  # there is none before
    assert page.run(TITLE) == first
    page.press("n")
    assert page.run(TITLE) == "0007.pdf"
    page.press("n")
    assert page.run(TITLE) == "Stock June.pdf"
    page.press("?")
    assert page.run("byId('help').open")
    page.press("j", "Escape")  # closes the help only
    assert not page.run("byId('help').open")
    assert page.run(TITLE) == "Stock June.pdf"


def test_filter_search_and_order(page):
    page.click("#filter-error")
    assert len(page.run(LISTED)) == 2
    assert page.run(TITLE) == "0007.pdf"
    page.click("#filter-all")
    page.press("/")
    page.type("porzellan")
    assert len(page.run(LISTED)) == 1
    page.type("no such words")
    assert page.run("getComputedStyle(byId('nothing')).display") == "block"
    page.type("")
    page.run("byId('sort').value = 'document'")
    page.run("byId('sort').dispatchEvent(new Event('change'))")
    assert page.run("list.querySelector('.document').textContent") == "bicycle.png"
    page.click("#list .page:nth-child(4)")
    assert page.run(TITLE) == "Harbour 4711-08.pdf"


def test_a_page_is_zoomed_and_fitted(page):
    page.wait(lambda: page.run("paper.firstChild.complete"), "the image")
    width = "paper.firstChild.clientWidth"
    fitted = page.run(width)
    page.press("+")
    assert page.run(width) == pytest.approx(1.25 * fitted, abs=2)
    page.press("-", "-")
    assert page.run(width) == pytest.approx(0.8 * fitted, abs=2)
    page.press("0")
    assert page.run(width) == fitted


def test_corrections_are_saved_and_applied(page, mail, downloads, tmp_path):
    records, _ = mail
    focus(page, "total")
    page.type("1388.02")
    focus(page, "sender")
    page.type("")
    page.press("Escape")
    page.run(
        "(() => { const cell = panel.querySelector('td input');"
        "cell.value = 'Lampe'; cell.dispatchEvent(new Event('input')); })()"
    )
    assert page.run("panel.querySelector('del').textContent") == "NORDLICHT"
    assert "corrected" in page.run(CURRENT)
    page.press("n", "e")  # a document without an answer
    page.press("Escape")
    focus(page, "number")
    page.type("7")
    page.press("Escape", "j", "j")
    file = saved(page, downloads)
    corrections = [json.loads(line) for line in file.read_text().splitlines()]
    assert [c["file"] for c in corrections] == [
        "invoices/Nordlicht 2024-031.pdf",
        "scans/0007.pdf",
    ]
    fields = corrections[0]["fields"]
    assert {*fields} == {"total", "sender", "items"}
    assert [*corrections[1]["fields"]] == [
        *("kind", "sender", "date", "number", "total", "paid", "items")
    ]

    out = tmp_path / "t.jsonl"
    # The second has no kind, which the schema demands.
    assert export(records, "jsonl", out, "--corrections", str(file)) == 1
    rows = {
        row["document"]: row for row in map(json.loads, out.read_text().splitlines())
    }
    row = rows["invoices/Nordlicht 2024-031.pdf"]
    assert (row["total"], row["sender"], row["corrected"]) == (1388.02, None, True)
    assert row["items"][0] == {"item": "Lampe", "quantity": 6, "amount": 870.0}
    assert not rows["scans/0007.pdf"]["corrected"]

    # A page that is exported with corrections starts with them.
    again = tmp_path / "again"
    assert export(records, "html", again, "--corrections", str(file)) == 1
    page.open((again / "index.html").as_uri())
    assert page.run("byId('filter-corrected').innerText").endswith("1")
    assert page.run("byId('save').disabled")


def test_what_is_not_of_the_fields_type_is_marked_and_not_saved(page):
    focus(page, "total")
    page.type("12,50")
    assert page.run("document.activeElement.matches(':invalid')")
    assert "such as -12.5" in page.run("document.activeElement.title")
    assert page.run("byId('save').disabled")
    page.type("1e2")
    assert page.run("correctionsText()").endswith('"fields":{"total":100}}\n')


def test_unsaved_work_survives_and_can_be_reverted(page, mail):
    focus(page, "number")
    page.type("2024-032")
    assert page.run("byId('status').textContent") == "Not saved"
    page.open((mail[1] / "index.html").as_uri())
    assert page.run("valueOf(records[state.current], 'number')") == "2024-032"
    assert page.run("byId('status').textContent") == "Not saved"
    page.press("r")
    assert page.run("correctionsText()") == ""
    assert page.run("panel.querySelectorAll('.changed').length") == 0


def test_a_browser_with_files_writes_to_the_chosen_one(page):
    """The dialog of the browser is replaced: a person would choose a file in it."""
    page.run(
        "window.written = []; window.showSaveFilePicker = async ({suggestedName}) => ({"
        "createWritable: async () => ({close: async () => {},"
        "write: async (text) => written.push([suggestedName, text])})}); 0"
    )
    focus(page, "number")
    page.type("1")
    page.press("s", control=True)
    page.wait(lambda: page.run("written.length"), "a file")
    ((name, text),) = page.run("written")
    assert name == "corrections.jsonl"
    assert json.loads(text)["fields"] == {"number": "1"}
    page.wait(lambda: page.run("byId('save').disabled"), "that it is saved")
    page.run("window.showSaveFilePicker = async () => { throw 'asked again'; }; 0")
    page.type("2")
    page.press("s", control=True)
    page.wait(lambda: page.run("written.length") == 2, "the same file")


@pytest.mark.parametrize("data", [False, True])
def test_names_answers_and_errors_are_text_only(show, downloads, tmp_path, data):
    records = []
    for number, text in enumerate(HOSTILE, 1):
        answer = {text: text, "__proto__": {text: text}} if data else text
        texts = {"error": text, "cut": text} if number == 2 else {}
        records.append({"file": text, "page": number, "answer": answer, **texts})
    file, out = (
        write(tmp_path / "r.jsonl", *records, question=HOSTILE[0]),
        tmp_path / "o",
    )
    assert export(file, "html", out) == 0
    page = show(out)
    page.run("window.hit = () => { window.hits = 1; }; 0")
    assert page.run("records.length") == len(HOSTILE)
    for _ in HOSTILE:
        values = page.run(
            "[...panel.querySelectorAll('input, textarea')].map(i => i.value)"
        )
        name = page.run("records[state.current].file")
        assert name in HOSTILE and name in values
        assert name.rpartition("/")[2] == page.run(TITLE)
        assert not data or page.run("own(records[state.current].answer, '__proto__')")
        assert page.run("document.querySelectorAll('main script, main a').length") == 0
        assert page.run("panel.querySelectorAll('img').length") == 0
        page.press("e", "Escape", "j")
    assert page.run("window.hits ?? 0") == 0
    assert all(url.startswith("file:") for url in page.requested)
    # What is typed comes back as it is, also in a key such as `__proto__`.
    page.run(
        "for (const area of panel.querySelectorAll('textarea.json')) {"
        "area.value = '{\"a\": 1}'; area.dispatchEvent(new Event('input')); }"
        "for (const area of panel.querySelectorAll('textarea:not(.json)')) {"
        "area.value = 'x'; area.dispatchEvent(new Event('input')); } 0"
    )
    corrections = saved(page, downloads)
    assert (
        export(file, "jsonl", tmp_path / "t.jsonl", "--corrections", str(corrections))
        == 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()
    ]
    (changed,) = [row for row in rows if row["corrected"]]
    assert changed["__proto__" if data else "answer"] == ({"a": 1} if data else "x")


def test_the_browser_runs_nothing_else_and_connects_to_nothing(page):
    page.run(
        "(() => { const script = document.createElement('script');"
        "script.textContent = 'window.hits = 1'; document.body.append(script);"
        "const image = document.createElement('div');"
        "image.innerHTML = '<img src=images/none onerror=\"window.hits = 1\">';"
        "document.body.append(image);"
        "new Image().src = 'http://127.0.0.1:9/image'; })()"
    )
    assert (
        page.run("fetch('http://127.0.0.1:9/').catch((error) => error.name)")
        == "TypeError"
    )
    page.wait(lambda: page.run("1") and len(page.messages) >= 4, "what is refused")
    assert page.run("window.hits ?? 0") == 0
    refused = [text for text in page.messages if "Content Security Policy" in text]
    assert len(refused) >= 4
    page.messages.clear()
