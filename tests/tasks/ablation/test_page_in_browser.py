"""The page of results in a headless Chromium: it is quiet, plays, sorts, filters, compares blindly, fits a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browser, installed
from page_systems import HOSTILE, corpus
from voxzoo.tasks.ablation.report import report

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium is installed (VOXZOO_BROWSER names another)")


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    program = installed()
    assert program is not None
    with browser(program) as opened:
        opened.look(1280, 900)
        yield opened


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    files = [str(path) for path in corpus(folder, 50, systems=3, hostile=True, clips=4)]
    report([], files, references=str(folder / "references.jsonl"), out=folder / "page.html", title="<b>A page</b>")
    return folder / "page.html"


@pytest.fixture
def page(tab: Tab, place: Path) -> Tab:
    """Open, of the usual size, and nothing said in the console so far."""
    tab.said.clear()
    tab.look(1280, 900)
    tab.open(place)
    return tab


def cards(page: Tab) -> list[str]:
    return page.run("[...document.querySelectorAll('#cards .card h3')].map((one) => one.textContent)")


def choose(page: Tab, select: str, label: str) -> None:
    page.run(
        f"(() => {{ const one = document.querySelector({json.dumps(select)});"
        f" one.value = [...one.options].find((each) => each.textContent === {json.dumps(label)}).value;"
        " one.dispatchEvent(new Event('change')); })()"
    )


def test_it_opens_without_a_word_in_the_console(page: Tab):
    page.run("scrollTo(0, document.body.scrollHeight)")
    page.wait("document.querySelectorAll('#cards .card').length > 20")
    assert page.said == []
    assert page.run("document.title") == "<b>A page</b>"


def test_what_looks_like_html_is_shown_as_text(page: Tab):
    page.run("while (!document.getElementById('more').hidden) document.getElementById('more').click()")
    shown = page.run("document.getElementById('cards').textContent")
    for text in HOSTILE:
        word = text.replace("\x00", "").split()[-1].removesuffix("\ud800")  # half a character cannot be told
        assert word in shown, word
    assert page.run("document.querySelectorAll('#cards script, #cards i, #cards u, #cards b').length") == 0
    assert page.run("[...document.images].every((one) => one.src.startsWith('data:image/webp'))")
    assert page.said == []


def test_the_policy_stops_what_gets_in_all_the_same(page: Tab):
    page.run(
        "(() => { try { const one = document.createElement('script'); one.append('window.got = 1');"
        " document.body.append(one); } catch { /* refused earlier */ } })()"
    )
    assert page.run("window.got === undefined")
    refused = page.run("(() => { try { document.body.innerHTML = '<p>'; return false; } catch { return true; } })()")
    assert refused


def test_players_play_and_pictures_load(page: Tab):
    page.run("document.getElementById('with-sound').click()")
    assert len(cards(page)) == 4
    page.run("Promise.all([...document.querySelectorAll('.card img')].map((one) => one.decode()))")
    sizes = page.run("[...document.querySelectorAll('.card img')].map((one) => [one.naturalWidth, one.naturalHeight])")
    assert sizes == [[32, 64]] * 16
    page.run("document.querySelector('.card audio').play()")
    page.wait("document.querySelector('.card audio').currentTime > 0.2")
    assert page.run("document.querySelector('.card audio').duration") == pytest.approx(1, abs=0.1)
    page.run("document.querySelectorAll('.card audio')[1].play()")
    page.wait("document.querySelector('.card audio').paused")  # one at a time
    page.run(
        "Promise.all([...document.querySelectorAll('.card audio')].map((one) => one.play().then(() => one.pause())))"
    )
    assert page.said == []


def test_tables_sort(page: Tab):
    first = "[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[0].textContent)"
    assert page.run(first) == ["system0", "system1", "system2"]
    page.run("document.querySelectorAll('#table th button')[1].click()")
    page.run("document.querySelectorAll('#table th button')[1].click()")
    assert page.run(first) == ["system2", "system1", "system0"]
    assert page.run("document.querySelectorAll('#table th')[1].getAttribute('aria-sort')") == "ascending"


def test_examples_sort_search_and_filter(page: Tab):
    everything = page.run("document.getElementById('found').textContent")
    assert everything.startswith("50 of 50 utterances; mean chrF of an utterance: system0 ")
    choose(page, "#sort", "score of system2")
    scores = "[...document.querySelectorAll('#cards .card')].map((c) => c.querySelectorAll('.value')[2].textContent)"
    found = [float(text.split()[1]) for text in page.run(scores)]
    assert found == sorted(found)
    page.run("document.getElementById('direction').click()")
    found = [float(text.split()[1]) for text in page.run(scores)]
    assert found == sorted(found, reverse=True)
    choose(page, "[data-field]", "all")
    page.run("document.getElementById('search').value = 'QHICHWA 17';"
             "document.getElementById('search').dispatchEvent(new Event('input'))")  # fmt: skip
    assert cards(page) == ["u00017"]
    page.run("document.getElementById('search').value = '';"
             "document.getElementById('search').dispatchEvent(new Event('input'))")  # fmt: skip
    labels = page.run("[...document.querySelectorAll('#filter-fields label')].map((one) => one.firstChild.textContent)")
    assert "<b>field</b>" in labels or "direction" in labels
    place = labels.index("speaker")
    choose(page, f"[data-field='{place}']", "<i>speaker 3</i>")
    assert page.run("document.getElementById('found').textContent").startswith("7 of 50")
    page.run("document.querySelector('#shown-systems input').click()")
    assert page.run("document.querySelector('.card').querySelectorAll('.value').length") == 2


def test_words_that_differ_are_marked(tab: Tab, tmp_path: Path):
    (tmp_path / "r.tsv").write_text("id\ttgt_text\na\tThe cat sat on the mat.\nb\t猫が好き\n")
    (tmp_path / "h.tsv").write_text("id\ttext\na\tthe dog sat on mat\nb\t犬が好き\n")
    report([], [str(tmp_path / "h.tsv")], references=str(tmp_path / "r.tsv"), lang="jpn", out=tmp_path / "page.html")
    tab.open(tmp_path / "page.html")
    marks = "[...document.querySelectorAll('#cards ins, #cards del')].map((one) => one.tagName + ' ' + one.textContent)"
    assert tab.run(marks)[-2:] == ["DEL 猫", "INS 犬"] or "INS 犬" in tab.run(marks)
    (tmp_path / "page.html").unlink()
    report([], [str(tmp_path / "h.tsv")], references=str(tmp_path / "r.tsv"), out=tmp_path / "page.html")
    tab.open(tmp_path / "page.html")
    assert tab.run(marks)[:3] == ["DEL cat", "INS dog", "DEL the"]


def test_the_keyboard_is_enough(page: Tab):
    page.press("j")
    assert page.run("document.activeElement.dataset.row") == "0"
    page.press("j")
    assert page.run("document.activeElement.dataset.row") == "1"
    page.press("k")
    page.press("p")
    page.wait("[...document.querySelectorAll('audio')].some((one) => !one.paused)")
    page.press("/")
    assert page.run("document.activeElement.id") == "search"
    page.run("document.activeElement.blur(); document.querySelector('#table th button').focus()")
    page.press("Enter")
    assert page.run("document.querySelector('#table th').getAttribute('aria-sort')") == "descending"
    for _ in range(12):
        page.press("Tab")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_a_blind_comparison_keeps_choices_and_tests_them(page: Tab):
    choose(page, "#blind-how", "reading")
    page.run("document.getElementById('blind-start').click()")
    place = "document.getElementById('blind-place').textContent"
    for key in "aaabbb0":
        assert "system" not in page.run(place)
        page.press(key)
    page.press("u")
    assert page.run("document.getElementById('blind-status').textContent").startswith("6 of ")
    saved = page.run(
        "new Promise((done) => { const make = URL.createObjectURL; URL.createObjectURL = (blob) => {"
        " blob.text().then(done); return make.call(URL, blob); };"
        " document.getElementById('blind-save').click(); })"
    )
    kept = json.loads(saved)
    assert kept["systems"] == ["system0", "system1"]
    assert [each["choice"] for each in kept["choices"]] == [*"aaabbb"]
    page.run("document.getElementById('blind-stop').click()")
    rows = page.run("[...document.querySelectorAll('#blind-result tbody tr')].map((row) => row.textContent)")
    wins = [int(row.removeprefix(name)) for row, name in zip(rows, ("system0", "system1", "no difference"))]
    chosen = [each[each["choice"]] for each in kept["choices"]]
    assert wins == [chosen.count("system0"), chosen.count("system1"), 0]
    said = page.run("document.getElementById('blind-status').textContent")
    expected = {3: "1.000", 4: "0.688", 5: "0.219", 6: "0.031"}[max(wins)]
    assert f"p = {expected}" in said
    # A saved file goes on elsewhere, and one that is none is refused.
    page.run("localStorage.clear()")
    page("Page.reload")
    page.wait("document.readyState === 'complete' && document.querySelector('#blind:not([hidden])')")
    for content, expected in ((saved, "6 of "), ("[]", "choices.json cannot be used: ")):
        page.run(
            f"(() => {{ const file = new File([{json.dumps(content)}], 'choices.json'); const all = new DataTransfer();"
            " all.items.add(file); const one = document.getElementById('blind-load'); one.files = all.files;"
            " one.dispatchEvent(new Event('change')); })()"
        )
        page.wait(f"document.getElementById('blind-status').textContent.startsWith({json.dumps(expected)})")
    assert page.said == []


def test_it_is_readable_at_the_width_of_a_telephone_and_in_the_dark(page: Tab):
    colours = "getComputedStyle(document.body).backgroundColor + ' ' + getComputedStyle(document.body).color"
    assert page.run(colours) == "rgb(255, 255, 255) rgb(26, 28, 31)"
    page.look(390, 844, dark=True)
    assert page.run(colours) == "rgb(20, 22, 26) rgb(232, 234, 237)"
    assert page.run("document.documentElement.scrollWidth") <= 390
    wide = page.run(
        "[...document.querySelectorAll('main *')].filter((one) => !one.closest('.scroll') &&"
        " one.getBoundingClientRect().right > 391).map((one) => one.tagName + '.' + one.className)"
    )
    assert wide == []
    page.wait("document.querySelector('#group-plot svg').viewBox.baseVal.width < 390")
    small = page.run(
        "[...document.querySelectorAll('p, td, th, label, button, .tag, text')].filter((one) => one.textContent &&"
        " parseFloat(getComputedStyle(one).fontSize) < 12).length"
    )
    assert small == 0
    page.run("document.getElementById('theme').click()")
    assert page.run(colours).startswith("rgb(255, 255, 255)")


@pytest.mark.slow
def test_five_systems_of_three_thousand_utterances_open_quickly(tab: Tab, tmp_path: Path):
    files = [str(path) for path in corpus(tmp_path, 3000, systems=5)]
    report([], files, references=str(tmp_path / "references.jsonl"), out=tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 30e6
    tab.look(1280, 900)
    assert tab.open(tmp_path / "page.html") < 3
    assert tab.run("document.getElementById('found').textContent").startswith("3,000 of 3,000")
    assert tab.run("document.querySelectorAll('.card').length") < 100
