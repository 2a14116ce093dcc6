"""The report in a real browser, Chromium without a screen: nothing wider than the page, no error, dark, print.

Where no chromium is installed these tests are skipped; Debian's is `apt-get install chromium`.
"""

import html
import json
import re
import shutil
import subprocess

import closed_logs
import pytest

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from mlperf_fast.submission.report_page import page
from mlperf_fast.submission.report_results import gather

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium is installed; Debian's: apt-get install chromium")

# Shows the report in frames of several widths and tells what it finds there. Its own script may: it's another document.
PROBE = """<!DOCTYPE html><title>probe</title><body><pre id="found"></pre><script>
const widths = [320, 390, 768, 1100, 1600], found = [];
let left = widths.length;
for (const width of widths) {
  const frame = document.createElement('iframe');
  frame.style.width = width + 'px'; frame.style.height = '800px'; frame.style.border = '0';
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement, style = frame.contentWindow.getComputedStyle;
    for (const one of page.querySelectorAll('details')) one.open = true;
    const out = [...page.querySelectorAll('body *')].filter(one =>
      !one.closest('.scroll, svg, .skip') && one.getBoundingClientRect().right > width + 1);
    const texts = [...page.querySelectorAll('svg text')].filter(one => {
      const box = one.getBoundingClientRect(), svg = one.ownerSVGElement.getBoundingClientRect();
      return box.left < svg.left - 2 || box.right > svg.right + 2 || box.top < svg.top - 2
        || box.bottom > svg.bottom + 2;
    });
    const line = page.querySelector('svg path[style*="stroke: var(--series-1)"]'), ink = style(page.body).color;
    found.push({width, scroll: root.scrollWidth, out: out.map(one => one.outerHTML.slice(0, 80)),
      texts: texts.map(one => one.textContent), svgs: page.querySelectorAll('svg').length,
      ground: style(root).backgroundColor, ink, stroke: style(line).stroke,
      text: style(page.querySelector('svg text')).fill});
    if (!--left) document.getElementById('found').textContent = JSON.stringify(found);
  };
  frame.src = 'report.html';
  document.body.append(frame);
}
</script>"""


def browse(folder, *options, address="report.html"):
    """Runs Chromium on a file of the folder; returns what it prints and its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--allow-file-access-from-files", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", *options, (folder / address).as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of two systems, one with a long name, and hostile texts; and the page that probes it."""
    root = closed_logs.package(tmp_path_factory.mktemp("ajax"), minutes=(30.0, 31.0, 33.0, 30.5, 32.0))
    name = "heron_with_a_very_long_name_that_has_no_space_in_it_anywhere_at_all_and_goes_on"
    closed_logs.description(root / f"systems/{name}.json")
    logs = closed_logs.folder(root / f"results/{name}/resnet", epochs=(40, 44), minutes=(20.0, 22.5), failed=1)
    for path in logs.iterdir():
        path.write_text(path.read_text().replace('"2xPetrel"', json.dumps("<script>alert(1)</script>" * 20)))
        closed_logs.add_game(path, white="W" * 200, board=[".X" * 9 + "O"] * 19)
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(page(gather([str(root)])))
    (folder / "probe.html").write_text(PROBE)
    return folder


def found(folder, *options):
    text, console = browse(folder, "--window-size=1700,900", "--dump-dom", *options, address="probe.html")
    assert console == []
    widths = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)[1]))
    return sorted(widths, key=lambda one: one["width"])


def test_nothing_is_wider_than_the_page(folder):
    for one in found(folder):
        assert one["svgs"] > 10
        assert one["scroll"] <= one["width"], one
        assert one["out"] == [], one["width"]
        assert one["texts"] == [], f"at {one['width']}: beyond the edge of its picture"


def test_no_error_and_no_request(folder):
    _, console = browse(folder, "--dump-dom")
    assert console == []


def test_the_policy_stops_scripts_and_requests(folder):
    """The page has none; should there be any, the browser refuses."""
    text = (folder / "report.html").read_text()
    planted = '<script>document.title = "ran"</script><img src="https://example.org/x.png"></body>'
    (folder / "planted.html").write_text(text.replace("</body>", planted))
    dom, console = browse(folder, "--dump-dom", address="planted.html")
    assert "<title>ran</title>" not in dom
    assert len([line for line in console if "Content Security Policy" in line]) == 2


def test_pictures_follow_light_and_dark(folder):
    light, dark = found(folder)[3], found(folder, "--blink-settings=preferredColorScheme=0")[3]
    assert (light["ground"], dark["ground"]) == ("rgb(255, 255, 255)", "rgb(18, 22, 27)")
    for one in (light, dark):
        assert one["text"] == one["ink"], "the pictures' text has the page's colour"
    assert light["stroke"] != dark["stroke"]


def pages_in_print(folder, name):
    browse(folder, f"--print-to-pdf={folder / 'out.pdf'}", "--blink-settings=preferredColorScheme=0", address=name)
    return len(re.findall(rb"/Type\s*/Page\b", (folder / "out.pdf").read_bytes()))


def test_it_prints_with_everything_unfolded(folder):
    text = (folder / "report.html").read_text()
    rule = "details::details-content"
    assert text.count(rule) == 1
    (folder / "folded.html").write_text(text.replace(rule, "details::nothing"))
    (folder / "open.html").write_text(text.replace("<details>", "<details open>"))
    unfolded = pages_in_print(folder, "report.html")
    assert pages_in_print(folder, "folded.html") < unfolded == pages_in_print(folder, "open.html") < 16
