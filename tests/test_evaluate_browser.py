"""The report in a real browser: what hovers, slides, fits and can be read. Needs Chromium; asks for nothing outside."""

import html
import json
import os
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from components import program
from components.evaluate.compare_command import app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)

# Runs after the page's own script: moves the pointer and the slider, and writes down what a person would see.
PROBE = """
<script>
{
const seen = {errors};
const move = (element, x, y) => element.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y}));
const chart = document.querySelector("svg.chart"), box = chart.getBoundingClientRect();
const left = box.left + 52 / 560 * box.width, width = (560 - 68) / 560 * box.width;
move(chart, left + 0.5 * width, box.top + 40);
seen.tip = tip.textContent;
seen.dots = chart.querySelectorAll(".hover.on").length;
const place = tip.getBoundingClientRect();
seen.tipInside = place.left >= 0 && place.right <= innerWidth && place.bottom <= innerHeight;
chart.dispatchEvent(new PointerEvent("pointerleave"));
seen.tipGone = getComputedStyle(tip).visibility === "hidden";
move(document.querySelector("rect.bar"), 10, 10);
seen.barTip = tip.textContent;
const cells = () => [...document.querySelectorAll("tr[data-model]")].map(
  row => [...row.querySelectorAll("[data-cell]")].map(cell => cell.textContent));
seen.rings = document.querySelectorAll(".chosen.on").length;
seen.counts = {};
for (const step of [0, Number(slider.max)]) {
  slider.value = step;
  slider.dispatchEvent(new Event("input"));
  seen.counts[document.getElementById("chosen").textContent] = cells();
}
document.querySelector(".pane svg").dispatchEvent(new MouseEvent("click"));
seen.zoomed = dialog.open && dialog.querySelectorAll("svg").length === 1;
dialog.close();

// What is written over something else, or past the edge.
seen.overlaps = [];
for (const svg of document.querySelectorAll("main svg")) {
  const texts = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const frame = svg.getBoundingClientRect();
  texts.forEach(([text, a], index) => {
    if (a.left < frame.left - 1 || a.right > frame.right + 1) seen.overlaps.push(text + " leaves the drawing");
    for (const [other, b] of texts.slice(index + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3) seen.overlaps.push(text + " | " + other);
  });
}
seen.wide = [document.documentElement.scrollWidth, innerWidth];

// Contrast as WCAG 2.2 defines it.
const rgb = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = color => rgb(color).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
seen.paper = getComputedStyle(document.body).backgroundColor;
seen.contrast = {};
for (const name of ["h1", ".soft", ".row-count", "th", ".counts .missed", ".counts .false", "ul.method li"])
  for (const element of document.querySelectorAll(name))
    seen.contrast[name] = contrast(getComputedStyle(element).color, seen.paper);
for (const name of ["text.tick", "text.faint", "text.label", "text.value"])
  seen.contrast[name] = contrast(getComputedStyle(document.querySelector(name)).fill, seen.paper);
for (const name of [".bar.m0", ".bar.m1"])
  seen.contrast[name] = contrast(getComputedStyle(document.querySelector(name)).fill, seen.paper);
seen.tipContrast = contrast(getComputedStyle(tip).color, getComputedStyle(tip).backgroundColor);
const answer = document.createElement("pre");
answer.id = "seen";
answer.textContent = JSON.stringify(seen);
document.body.append(answer);
}
</script>
"""
WATCH = """<script>
const errors = [];
addEventListener("error", event => {
  errors.push(event.message);
  document.documentElement.dataset.errors = errors;
});
addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
</script>"""


def write_inputs(folder):
    """WIDER FACE annotations of three events with attributes, images, and two sets of detections."""
    random = np.random.default_rng(0)
    annotations = []
    for number in range(30):
        event, name = f"{number % 3}--Some_{'Very_Long_' * (number % 3)}Event", f"image_{number}"
        image = random.integers(0, 255, (90, 160, 3), np.uint8)
        (folder / "images" / event).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / event / f"{name}.jpg"), image)
        corner = random.integers(0, (100, 40), (4, 2))
        size = random.integers(8, 50, (4, 1)).repeat(2, axis=1)
        flags = random.integers(0, 2, (4, 6))
        flags[:, 3] = 0  # nothing is flagged invalid
        lines = [" ".join(map(str, [*c, *s, *f])) for c, s, f in zip(corner, size, flags, strict=True)]
        annotations += [f"{event}/{name}.jpg", "4", *lines]
        for model, quality in (("first", 0.9), ("second", 0.6)):
            found = [
                (*(c + random.normal(0, 1, 2)), *s, score)
                for c, s, score in zip(corner, size, random.uniform(0.3, 1, 4), strict=True)
                if random.random() < quality
            ] + [(*random.uniform(0, 60, 2), 20, 20, random.uniform(0, 0.6))]
            file = folder / model / event / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = [" ".join(f"{value:.4f}" for value in row) for row in found]
            file.write_text("\n".join([name, str(len(rows)), *rows]))
    (folder / "wider_face_val_bbx_gt.txt").write_text("\n".join(annotations) + "\n")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of two models, and the document of their comparison."""
    folder = tmp_path_factory.mktemp("report")
    write_inputs(folder)
    words = [f"first={folder / 'first'}", f"the <b>second={folder / 'second'}"]
    words += ["--truth", folder / "wider_face_val_bbx_gt.txt", "--images", folder / "images"]
    words += ["--replicates", "200", "--report", folder / "report.html"]
    assert program.run(app, [str(word) for word in words], "gridbox compare") == 0
    return folder / "report.html"


def look(page, folder, width, *options):
    """Opens the report in Chromium and returns what the probe saw."""
    text = page.read_text(encoding="utf-8")
    probed = folder / f"probed-{width}.html"
    text = text.replace("<title>", WATCH + "<title>", 1).replace("</body>", PROBE + "</body>")
    probed.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]
    command += ["--virtual-time-budget=2000", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    result = subprocess.run(
        [*command, *options, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=60, check=False
    )
    answer = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout, re.DOTALL)
    assert answer, re.findall('data-errors="(.*?)"', result.stdout) or result.stderr[-2000:]
    return json.loads(html.unescape(answer[1]))


@pytest.fixture(scope="module")
def wide(page):
    return look(page, page.parent, 1200)


@pytest.fixture(scope="module")
def dark(page):
    return look(page, page.parent, 500, "--blink-settings=preferredColorScheme=0")


def test_page_runs_without_errors_and_asks_for_nothing(wide, dark):
    assert wide["errors"] == dark["errors"] == []


def test_pointing_at_a_curve_tells_its_values_for_each_model(wide):
    lines = wide["tip"].split("\n")
    assert [line.partition(":")[0] for line in lines] == ["first", "the <b>second"]
    for line in lines:
        recall, precision, score = re.fullmatch(r".*: recall (\S+), precision (\S+), score (\S+)", line).groups()
        assert float(recall) == pytest.approx(0.5, abs=0.03)
        assert 0 < float(precision) <= 1
        assert 0 <= float(score) <= 1
    assert (wide["dots"], wide["tipInside"], wide["tipGone"]) == (2, True, True)
    assert re.fullmatch(r"first\n0-16 pixels: AP \d\.\d{4}\n\d+ faces", wide["barTip"])


def test_slider_counts_what_is_kept_and_marks_it_on_the_curve(wide):
    assert wide["rings"] == 2
    (low, everything), (high, little) = wide["counts"].items()
    assert float(low) < 0.1 < 0.9 < float(high)
    for model in (0, 1):
        found, false, missed, precision, recall, f1 = everything[model]
        assert int(found) + int(missed) == 120
        assert float(precision) == pytest.approx(int(found) / (int(found) + int(false)), abs=5e-4)
        assert float(recall) == pytest.approx(int(found) / 120, abs=5e-4)
        assert float(f1) == pytest.approx(2 * int(found) / (120 + int(found) + int(false)), abs=5e-4)
    assert int(everything[0][0]) > int(everything[1][0]) > 0
    assert sum(int(row[0]) + int(row[1]) for row in little) == 1  # the highest score of all


def test_a_picture_opens_in_full(wide, dark):
    assert wide["zoomed"]
    assert dark["zoomed"]


def test_no_label_lies_over_another_and_nothing_leaves_a_narrow_window(wide, dark):
    assert wide["overlaps"] == []
    assert dark["overlaps"] == []
    for seen in (wide, dark):
        content, window = seen["wide"]
        assert content <= window


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_dark(scheme, wide, dark):
    seen = wide if scheme == "light" else dark
    assert seen["paper"] == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    bars = {name: seen["contrast"].pop(name) for name in (".bar.m0", ".bar.m1")}
    assert min(bars.values()) >= 3, bars
    assert min(seen["contrast"].values()) >= 4.5, seen["contrast"]
    assert seen["tipContrast"] >= 4.5
