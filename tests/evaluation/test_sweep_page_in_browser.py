"""The page about a sweep in a real browser: it fits a phone and a desktop, sorts, narrows, makes no error."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_shards import write_shards
from sweeps import CHOICE, RETRIEVAL, Asked, Model, steps, write_failure, write_sweep

from vlm.evaluation.sweep_report import write_sweep_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
WIDTHS = (390, 1400)
# The page in frames as wide as a phone and as a desktop: a window cannot be made as narrow as a phone is.
FRAMES = """<!doctype html><body><script>
const said = {widths: {}, errors: []}, pages = PAGES;
const seen = Object.entries(pages).map(([width, page]) => new Promise((done) => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.addEventListener("load", () => { said.widths[width] = measure(frame.contentDocument); done(); });
  frame.srcdoc = page;
  document.body.append(frame);
}));
function measure(page) {
  const table = page.querySelector("table.scores"), box = table.parentNode;
  const left = (item) => item.getBoundingClientRect().left;
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  const shown = (what) => [...table.querySelectorAll(what)].filter((head) => !head.hidden);
  box.scrollLeft = 1e6;
  const found = {
    client: page.documentElement.clientWidth, scroll: page.documentElement.scrollWidth,
    scrolled: box.scrollLeft, sticky: left(table.querySelector("tbody th")) - left(box),
    broken: [...page.images].filter((image) => !image.src.startsWith("data:")).length,
    controls: !page.querySelector(".controls").hidden, order: names(),
  };
  page.querySelectorAll("details").forEach((one) => { one.open = true; });
  found.opened = page.documentElement.scrollWidth;
  const button = table.querySelectorAll(".heads button")[1];
  button.click();
  found.sorted = names();
  button.click();
  found.turned = names();
  const language = page.querySelector("select[data-key=language]");
  language.value = "zh";
  language.dispatchEvent(new Event("change"));
  found.heads = shown(".heads th").map((head) => head.textContent.trim());
  found.spans = shown(".groups th").reduce((sum, head) => sum + head.colSpan, 0);
  return found;
}
Promise.all(seen).then(() => {
  const out = document.createElement("pre");
  out.id = "said";
  out.textContent = JSON.stringify(said);
  document.body.replaceChildren(out);
});
</script></body>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    pictures = {"shards": [write_shards(folder / "shards", [60])]}
    long_class = "a very_long_name_of_a_class_without_any_place_to_break_it_" * 3
    questions = [
        Asked(dataset="animals", categories=["cat", "dog", long_class], pictures=pictures),
        Asked(dataset="animals", language="zh", categories=["猫", "狗", "牛"], pictures=pictures),
        Asked(dataset="fine", categories=[f"kind {n}" for n in range(20)]),
        *[Asked(dataset=f"set_{n}", categories=[f"kind {n}" for n in range(40)]) for n in range(8)],
        Asked(dataset="search", task=RETRIEVAL, pictures=pictures),
        Asked(dataset="swaps", task=CHOICE, categories=["swap", "replace"]),
    ]
    models = [*steps("toy", [0.4, 0.6]), *steps("a_run_with_quite_a_long_name_as_they_are", [0.5, 0.7])]
    write_sweep(folder, models, questions)
    unhappy = Model(name="clip", skill=0.5)
    write_failure(folder, unhappy, questions[0], "DataError: /a/long/path/without/a/space" * 9)
    made, _ = write_sweep_report(
        folder, folder, baseline=None, against=None, averages={}, shifts={}, num_pictures=3
    )
    return made


def browse(address: Path, *options: str) -> tuple[str, str]:
    """What Chromium makes of a file, and what it says meanwhile."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    done = subprocess.run(
        [*command, "--dump-dom", address.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def seen(page: Path) -> tuple[dict[str, Any], str]:
    """What was measured in frames of both widths, and what the console said."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    text = page.read_text(encoding="utf-8")
    pages = json.dumps({str(width): text for width in WIDTHS}).replace("</", "<\\/")
    frames = page.with_name("frames.html")
    frames.write_text(FRAMES.replace("PAGES", pages), encoding="utf-8")
    dom, console = browse(frames, "--window-size=1500,1900", f"--user-data-dir={page.parent}/profile")
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, console[-2000:]
    return json.loads(html.unescape(found[1]))["widths"], console


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(seen: tuple[dict[str, Any], str], width: int) -> None:
    found = seen[0][str(width)]
    assert width - 20 <= found["client"] <= width  # less a bar to scroll down with
    assert found["scroll"] == found["client"]
    assert found["opened"] == found["client"]


def test_a_wide_table_scrolls_in_its_box_beside_the_names(seen: tuple[dict[str, Any], str]) -> None:
    found = seen[0]["390"]
    assert found["scrolled"] > 300
    assert abs(found["sticky"]) < 2


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_sort_and_narrow(seen: tuple[dict[str, Any], str], width: int) -> None:
    found = seen[0][str(width)]
    assert found["controls"]
    assert found["sorted"] != found["order"]
    known = found["sorted"][:4]  # of a checkpoint without an average, neither way is the place but last
    assert found["turned"] == [*known[::-1], found["sorted"][4]]
    assert found["sorted"][4] == "clip"
    assert found["heads"][0] == "Checkpoint"
    assert [head for head in found["heads"] if head.startswith(("animals", "fine", "set_"))] == [
        "animalszh · top-1"
    ]
    assert found["spans"] == len(found["heads"]) - 1


def test_the_console_stays_silent(seen: tuple[dict[str, Any], str]) -> None:
    assert "CONSOLE" not in seen[1]
    assert all(found["broken"] == 0 for found in seen[0].values())


def test_the_page_is_whole_without_its_script(page: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    text = page.read_text(encoding="utf-8")
    bare = page.with_name("bare.html")
    bare.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL), encoding="utf-8")
    dom, console = browse(bare, f"--user-data-dir={page.parent}/profile")
    assert '<div class="controls" hidden="">' in dom
    assert dom.count("<tr") == text.count("<tr")
    assert "CONSOLE" not in console
