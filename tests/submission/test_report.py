"""`report` shows what the other commands find, as a page that is whole, safe and the same each time."""

import json
import math
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import closed_logs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")

from mlperf_fast import cli
from mlperf_fast.errors import UserError
from mlperf_fast.submission import report
from mlperf_fast.submission import report_figures as figures
from mlperf_fast.submission.logs import Log
from mlperf_fast.submission.phases import Phases, phases
from mlperf_fast.submission.records import TOKEN, Record
from mlperf_fast.submission.report_html import Html, element, escaped, table
from mlperf_fast.submission.report_page import POLICY, page
from mlperf_fast.submission.report_results import gather
from mlperf_fast.submission.report_style import DARK, LIGHT
from mlperf_fast.submission.report_svg import VARIABLES, drawing
from mlperf_fast.suite import BENCHMARKS

PUBLISHED = ("28.685", "23.819", "84.397", "43.713", "30.806", "18.442", "1.697", "273.140")
VOID = {"meta", "br", "hr", "use", "path"}


class Page(HTMLParser):
    """What a browser would find in a page: elements, attributes, texts; and whether all that is opened is closed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> was never opened"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def shape(self):
        """The elements and the names of their attributes, without any text."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.texts)


def made(*paths, **options):
    return page(gather([str(path) for path in paths], **options))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Two systems, one of which has a failed run, and a game in its last log."""
    root = closed_logs.package(tmp_path_factory.mktemp("ajax"), minutes=(30.0, 31.0, 33.0, 30.5, 32.0))
    closed_logs.description(root / "systems/heron.json")
    logs = closed_logs.folder(root / "results/heron/resnet", epochs=(40, 44), minutes=(20.0, 22.5), failed=1)
    closed_logs.add_game(logs / "result_4.txt")
    return root


@pytest.fixture(scope="module")
def shown(package):
    return Page(made(package))


def test_the_real_logs_of_a_whole_machine(samples, tmp_path, capsys):
    out = tmp_path / "report.html"
    before = time.process_time()
    assert cli.main(["report", str(samples.parent), "-o", str(out)]) == 1  # dlrm and minigo log no seed
    assert time.process_time() - before < 30
    said = capsys.readouterr().out
    found = Page(out.read_text())
    for minutes in PUBLISHED:
        assert minutes in said
        assert minutes in found.texts
    assert found.text.count("✓ passes") >= 6
    assert "5 of 5 logs have no seed" in found.text
    assert found.text.count("not logged") >= 8  # the wait for data, and bert's evaluations
    assert out.stat().st_size < 2**20
    assert len(found.all("svg")) > 30
    assert not [name for name in os.listdir(tmp_path) if name != "report.html"]


def test_it_says_what_check_rcp_and_score_say(shown, package, capsys):
    assert "31.167" in shown.texts  # petrel's score
    assert "21.667" in shown.texts  # heron's, of 20.0 22.5 20.0 22.5 and a failure
    assert "1 of 5 runs failed, where 1 may; a failed run counts as the slowest" in shown.text
    assert "needs a new RCP" not in shown.text
    assert "RCP Interpolation (at least" in shown.text
    assert cli.main(["check", str(package)]) == 0
    assert "compliance/eval_accuracy" in shown.text
    assert "the run missed its target and counts as failed; few enough may" in shown.text


def test_systems_stand_side_by_side(shown):
    bars = [svg["aria-label"] for svg in shown.all("svg") if " of resnet, " in svg["aria-label"]]
    assert bars == [
        "Score of resnet, minutes to train. heron: 21.667; petrel: 31.167",
        "Training it took of resnet, epochs. heron: 42.667; petrel: 40.000",
        "Throughput of resnet, samples/s. heron: 42,073; petrel: 27,416",
    ]


def test_two_organizations_with_one_system_name_can_be_told_apart(tmp_path):
    for org in ("ajax", "blue"):
        closed_logs.folder(tmp_path / org / "results/kite/resnet")
    names = [one.system for one in gather([str(tmp_path / "ajax"), str(tmp_path / "blue/results/kite")]).results]
    assert names == ["ajax/kite", "blue/kite"]
    closed_logs.folder(tmp_path / "elsewhere/blue/results/kite/resnet")
    paths = [tmp_path / "blue", tmp_path / "elsewhere/blue"]
    names = [one.system for one in gather([str(path) for path in paths]).results]
    assert names == [str(path / "results/kite/resnet") for path in paths]


def test_a_folder_that_is_named_twice_is_shown_once(package):
    assert len(gather([str(package), str(package / "results/heron"), f"{package}/"]).results) == 3


def test_the_page_is_whole_and_safe(shown):
    assert shown.open == []
    names = {tag for tag, _ in shown.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "image", "base", "form", "foreignobject"}
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
        assert "url(" not in attributes.get("style", "")
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in shown.all("meta")
    assert "url(" not in "".join(shown.texts)


def test_ids_are_unique_and_links_lead_somewhere(shown):
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in shown.elements:
        for name in ("href", "clip-path", "aria-labelledby"):
            if name in attributes:
                assert attributes[name].removeprefix("url(").removesuffix(")").removeprefix("#") in ids


def test_it_can_be_read_aloud_and_by_keyboard(shown):
    assert shown.all("html") == [{"lang": "en"}]
    first = next(attributes for tag, attributes in shown.elements if tag == "a")
    assert first == {"href": "#verdicts", "class": "skip"}
    levels = [int(tag[1]) for tag, _ in shown.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert all(attributes["scope"] in ("row", "col") for attributes in shown.all("th"))
    assert len(shown.all("caption")) == len(shown.all("table"))
    for svg in shown.all("svg"):
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 30
    assert all(box["tabindex"] == "0" for tag, box in shown.elements if box.get("class") == "scroll")
    landmarks = [tag for tag, _ in shown.elements if tag in ("header", "nav", "main", "footer")]
    assert sorted(landmarks) == ["footer", "header", "main", "nav"]


def test_pictures_take_the_pages_colours(package):
    text = made(package)
    svgs = text[text.index("<svg") :]
    assert "var(--series-1)" in svgs
    assert "var(--target)" in svgs
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]+)", svgs))
    assert colours == set(), "matplotlib's own colours don't follow light and dark"


def test_texts_and_lines_stand_out_from_their_ground():
    """WCAG 2.1: a contrast of 4.5 for text, of 3 for what a picture is made of."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        light, dark = sorted((luminance(one), luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for theme in (LIGHT, DARK):
        colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", theme))
        assert set(VARIABLES.values()) <= set(colours)
        for name in ("ink", "quiet", "link", "target"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        for name in ("good", "bad", "warn"):
            assert contrast(colours[name], colours[f"{name}-ground"]) >= 4.5, name
        for name in [f"series-{i}" for i in range(1, 8)] + ["phase-3"]:
            assert contrast(colours[name], colours["paper"]) >= 3, name
        for name in ("ink", "quiet"):  # the rims of stones, and the lines
            assert contrast(colours[name], colours["board"]) >= 3, name
        assert luminance(colours["white"]) > 0.8 > 0.02 > luminance(colours["black"]), "stones keep their colours"


def test_equal_logs_give_equal_bytes(package, tmp_path):
    code = "from mlperf_fast import cli; import sys; sys.exit(cli.main(sys.argv[1:]))"
    for name, seed in (("a", "1"), ("b", "2")):
        command = [sys.executable, "-c", code, "report", str(package), "-o", str(tmp_path / name)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_without_matplotlib_one_line_says_how_to_get_it(package, tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from mlperf_fast import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "report", str(package), "-o", str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'mlperf_fast[report]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    report.write(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="can't be written: No space left"):
        report.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- what may stand in logs -----------------------------------------------------------------------------------------

HOSTILE = (
    "</style><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onfocus='alert(1)", "<!--", "]]>", "%s%n",
    "javascript:alert(1)", "$\\frac{1}{2}$", "\x00\x1b[31m\u202e\ud800", "</svg><svg onload=alert(1)>", "&lt;b>",
)  # fmt: skip


def rewritten(folder: Path, text: str, number: float = 0.5) -> None:
    """Puts a text wherever a log holds a text of the submitter, and a number wherever it holds one."""
    for path in sorted(folder.glob("result_*.txt")):
        lines = []
        for line in path.read_text().splitlines():
            record = json.loads(line.removeprefix(TOKEN))
            if record["key"] in ("submission_org", "submission_platform", "opt_name", "submission_status"):
                record["value"] = text
            if record["key"] == "eval_accuracy":
                record["metadata"]["epoch_num"] = number
            record["metadata"]["file"] = text
            lines.append(TOKEN + json.dumps(record))
        path.write_text("\n".join(lines) + "\n")
        closed_logs.add_game(path, black=text, white=text, win_rates=[number, 0.5, text, None, 0.5, 1])


@settings(max_examples=12, deadline=None)
@given(
    text=st.sampled_from(HOSTILE) | st.text(max_size=40),
    number=st.floats(allow_nan=True) | st.integers(-(10**30), 10**30),
)
def test_no_text_of_a_log_becomes_markup(shown, tmp_path_factory, text, number):
    root = tmp_path_factory.mktemp("hostile")
    closed_logs.folder(root, runs=2)
    rewritten(root, text, number)
    found = Page(made(root))
    assert found.open == []
    assert not set(found.shape) - set(shown.shape) - set(VOCABULARY)


# What a page may hold beyond the elements of the good one.
VOCABULARY = [
    ("details", ("open",)), ("details", ()), ("summary", ()), ("ul", ()), ("li", ()), ("h4", ()), ("code", ()),
    ("span", ("class",)), ("p", ("class",)), ("p", ()), ("svg", ("class", "style", "viewbox", "role", "aria-label")),
    ("g", ()), ("text", ("style", "x", "y")), ("strong", ()), ("div", ("class",)), ("figure", ()), ("figcaption", ()),
]  # fmt: skip


def test_names_of_files_and_folders_are_escaped(tmp_path):
    folder = closed_logs.folder(tmp_path / "<b>&amp;" / 'sy"s <i>' / "resnet", runs=2)
    (folder / "result_1.txt").rename(folder / "result_<script>alert(1)<\n>.txt")
    os.rename(folder / "result_0.txt", os.fsencode(folder) + b"/result_\xff.txt")
    text = made(tmp_path)
    assert "<script" not in text
    assert "<i>" not in text
    found = Page(text)
    assert found.open == []
    assert "result_<script>alert(1)<\\n>.txt" in found.text
    assert "result_\\udcff.txt" in found.text
    text.encode()


def test_a_description_is_escaped(tmp_path):
    root = closed_logs.package(tmp_path / "ajax", ("resnet",))
    closed_logs.description(root / "systems/petrel.json", status="<script>", host_storage_type="<b>x</b>")
    text = made(root)
    assert "<script" not in text
    assert "<b>" not in text


def test_what_cant_be_read_is_a_finding(tmp_path):
    folder = closed_logs.folder(tmp_path / "resnet")
    (folder / "result_0.txt").write_bytes(b"\xff\x00 nothing")
    (folder / "result_1.txt").unlink()
    (folder / "result_1.txt").mkdir()
    (folder / "result_2.txt").write_text(f"{TOKEN}[1]\n{TOKEN}{{}}\n")
    (folder / "result_3.txt").write_bytes((folder / "result_4.txt").read_bytes()[:2000])
    found = Page(made(folder))
    for said in ("is this a result log?", "expected an object, found [1]", "this is a folder", "no score"):
        assert said in found.text
    assert "✗ fails" in found.text


def test_runs_without_any_clock_or_evaluation(tmp_path):
    folder = closed_logs.folder(tmp_path / "resnet", runs=2)
    for path in folder.iterdir():
        lines = [line for line in path.read_text().splitlines() if '"run_st' not in line and "eval_acc" not in line]
        path.write_text("\n".join(lines))
    found = Page(made(folder))
    assert "The logs hold no evaluation that can be drawn." in found.text


def test_a_demo_with_its_own_target_and_reference(tmp_path, write_log):
    (tmp_path / "demo").mkdir()
    for i in range(5):
        path = write_log(tmp_path / "demo" / f"result_{i}.txt")
        text = path.read_text().replace('"value": {"throughput"', '"value": {"data_wait_share": 0.25, "throughput"')
        target = text.splitlines()[1].replace('"submission_org"', '"target"').replace('"house"', "0.21")
        path.write_text(text.replace("\n", f"\n{target}\n", 1))
    points = {"own": {"Benchmark": "dlrm", "BS": 1024, "Epochs to converge": [1.0] * 10}}
    (tmp_path / "points.json").write_text(json.dumps(points))
    found = Page(made(tmp_path / "demo"))
    assert "25.0%" in found.texts
    assert any("Target 0.21" in svg["aria-label"] for svg in found.all("svg"))
    assert "division open: only closed is tested against the reference" in found.text
    with_points = Page(made(tmp_path / "demo", custom=tmp_path / "points.json"))
    assert "no global_batch_size" in with_points.text


NUMBERS = st.floats() | st.integers(-(10**18), 10**18) | st.sampled_from([0.0, 1e-300, 1e17, 0.759, 1.5e12])


@settings(max_examples=25, deadline=None)
@given(
    curve=st.lists(st.tuples(NUMBERS | st.none(), NUMBERS | st.none()), max_size=5),
    parts=st.tuples(*[NUMBERS | st.none()] * 4),
    clock=st.tuples(NUMBERS, NUMBERS),
    benchmark=st.sampled_from(["resnet", "rnnt", "bert"]),
    band=st.none() | st.tuples(NUMBERS, NUMBERS),
    target=st.none() | NUMBERS,
)
def test_any_numbers_can_be_drawn(curve, parts, clock, benchmark, band, target):
    """Whatever the numbers, a picture or none: figures.py gets what a log's reader lets pass, and more."""
    bench = BENCHMARKS[benchmark]
    log = Log(
        path="result_0.txt", findings=(), started=clock[0], stopped=clock[1], curve=tuple(curve), complies=True,
        outcome="success", phases=Phases(*parts),
    )  # fmt: skip
    runs = figures.runs([log, Log(path="x", findings=())], [log])
    limits = figures.reference_band(*band) if band else None
    metric = next(iter(bench.target))
    with drawing():
        drawn = [
            figures.convergence("a", "a", runs, bench, metric, target, limits, clock[0], near=False),
            figures.convergence("b", "b", runs, bench, metric, target, limits, clock[0], near=True),
            figures.dots("c", "c", runs, [clock[0], None], "x", clock[1], "mean"),
            figures.phases("d", "d", runs),
            figures.bars("e", "e", [("<a> $x", clock[0]), ("b", None)], "x"),
        ]
    for one in drawn:
        if one is not None:
            assert Page(one).open == []
            assert "nan" not in one.lower()


def test_many_points_and_runs_are_bounded():
    curve = tuple((float(i), i % 7 / 10) for i in range(1000))  # no two pieces in line
    logs = [Log(path=f"result_{i}.txt", findings=(), curve=curve) for i in range(125)]
    runs = figures.runs(logs, [])
    with drawing():
        drawn = figures.convergence("a", "a", runs, BENCHMARKS["resnet"], "top1", 0.759, None, None, near=False)
    assert 20_000 < drawn.count(" L ") < 120 * 300 + 100
    assert len(drawn) < 1_500_000


# --- where the time goes --------------------------------------------------------------------------------------------


def test_where_the_time_goes(tmp_path):
    def parts(*keys):
        minutes = [Record(i, 60e3 * at, key, value, {}) for i, (key, at, value) in enumerate(keys)]
        times = {key: 60e3 * at for key, at, _ in keys}
        return phases(minutes, times.get("run_start"), times.get("run_stop"))

    start, stop = ("run_start", 10, None), ("run_stop", 50, None)
    init = [("init_start", 3, None), ("init_start", 1, None), ("init_stop", 9, None)]
    assert parts() == Phases()
    assert parts(*init) == Phases(init=8)
    assert parts(*init, start, stop) == Phases(8, 40, None, 0)
    evaluations = [("eval_start", 14, None), ("eval_stop", 16, None), ("eval_start", 20, None), ("eval_stop", 23, None)]
    assert parts(start, *evaluations, stop) == Phases(None, 4, 5, 31)
    assert parts(start, ("epoch_stop", 15, None), *evaluations, stop) == Phases(None, 4, 5, 31)
    assert parts(start, ("block_stop", 12, None), *evaluations, stop) == Phases(None, 2, 5, 33)
    # One at once with another counts once, one without an end stops with its result, none reaches over run_stop.
    overlapping = [("eval_start", 20, None), ("eval_stop", 30, None), ("eval_start", 25, None), ("eval_stop", 35, None)]
    assert parts(start, ("block_stop", 12, None), *overlapping, stop) == Phases(None, 2, 15, 23)
    assert parts(start, ("eval_start", 40, None), ("eval_accuracy", 45, 0.7), stop) == Phases(None, 30, 5, 5)
    assert parts(start, ("eval_start", 40, None), stop) == Phases(None, 30, 10, 0)
    assert parts(start, ("eval_start", 60, None), ("eval_stop", 70, None), stop) == Phases(None, 40, 0, 0)
    assert parts(stop, ("run_start", 60, None)) == Phases()
    waits = [("tracked_stats", 12, {"data_wait_share": share}) for share in (0.5, 0.25, True, "x", 7, math.nan)]
    assert parts(start, *waits, stop).data_wait == 0.25


# --- the parts ------------------------------------------------------------------------------------------------------


@given(st.text())
def test_elements_hold_any_text(text):
    found = Page(element("p", text, title=text))
    assert found.shape == [("p", ("title",))]
    assert "".join(found.texts) == found.elements[0][1]["title"]


def test_only_markup_that_was_made_here_is_markup():
    assert element("p", "<b>", Html("<b></b>")) == "<p>&lt;b&gt;<b></b></p>"
    assert element("p", f"{element('b')}") == "<p>&lt;b&gt;&lt;/b&gt;</p>", "a formatted string is text again"
    assert element("meta", http_equiv="x", hidden=True, title=None) == '<meta http-equiv="x" hidden>'
    assert escaped("a\n\x1b") == "a\\n\\x1b"
    assert '<td class="number">&lt;1</td>' in table("c", ["a", "b"], [["r", "<1"]], 1)
