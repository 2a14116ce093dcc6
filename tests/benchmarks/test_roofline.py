"""The picture: well-formed, whole, the same for the same rows, and legible."""

from xml.etree import ElementTree

import pytest
from mlperf_fast.benchmarks import roofline
from mlperf_fast.benchmarks.measure import Row, Timing

pytest.importorskip("matplotlib", reason="the extra `report` is not installed")
CEILINGS = {"triad": 29.4, "gather": 22.3, "gemm": 348.1, "bf16-gemm": 173.3}
HEADER = {"processor": "Some Processor <2 & more>", "threads": "2", "torch": "2.13.0", "date": "2026-11-24"}


def timing(ms: float) -> Timing:
    return Timing((ms, ms, ms), (ms, ms, ms), 10, 1)


def rows(cases: int) -> list[Row]:
    """Cases that lie close together, each with two backends, a competitor and an absent backend."""
    results = [{"cpp": timing(1 + i / 50), "ref": timing(3 + i / 50), "torch": timing(2), "cuda": "not run: no GPU"}
               for i in range(cases)]  # fmt: skip
    return [Row("sgd", f"case {i}", "fp32", 2, 12_000_000, 2_000_000, "triad", results[i], "cpp") for i in range(cases)]


def test_every_backend_of_every_case_is_a_labelled_point(tmp_path):
    message = roofline.write(tmp_path / "roofline.svg", rows(20), HEADER, CEILINGS)
    assert message == f"written: {tmp_path / 'roofline.svg'}"
    root = ElementTree.parse(tmp_path / "roofline.svg").getroot()
    ids = {element.get("id") for element in root.iter()}
    assert {f"point-{n}" for n in range(1, 41)} <= ids
    assert "point-41" not in ids
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for n in range(1, 41):
        assert str(n) in texts, "the number beside the point"
    for i in range(20):
        assert any(f"case {i}, fp32 · cpp: " in text for text in texts)
    # 2 MFLOP in 1 ms, and 12 MB in 1 ms of 29.4 GB/s
    assert any(text.endswith("case 0, fp32 · cpp: 2.0 GFLOP/s, 41 % of triad") for text in texts)
    for text in (
        "triad 29.4 GB/s",
        "gemm 348.1 GFLOP/s",
        "GFLOP/s",
        "Roofline of Some Processor <2 & more>, 2 threads",
    ):
        assert text in texts


def test_the_same_rows_give_the_same_small_file(tmp_path):
    for name in ("a.svg", "b.svg"):
        roofline.write(tmp_path / name, rows(20), HEADER, CEILINGS)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").stat().st_size < 150_000


def test_labels_do_not_overlap():
    """Boxes as the renderer measures them: numbers beside points, lines of the key, nothing outside the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    found = roofline.points(rows(20), CEILINGS)
    figure = roofline.draw(found, HEADER, CEILINGS)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(text, renderer) for text in [*axes.texts, *figure.texts]]  # without lines to points
    assert len(boxes) == 2 * len(found) + 1  # the key has a heading too
    for i, a in enumerate(boxes):
        assert 0 <= a.x0 < a.x1 <= figure.bbox.width
        assert 0 <= a.y0 < a.y1 <= figure.bbox.height
        for b in boxes[:i]:
            wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert wide <= 1.5 or high <= 1.5, "two labels overlap by more than a pixel"


def test_rows_without_flops_give_no_picture(tmp_path):
    row = Row("roc_auc", "1,000 scores", "fp32", 2, 10_000, 0, "triad", {"cpp": timing(1)}, "cpp")
    assert "not drawn: no backend's row has both bytes and flops" in roofline.write(
        tmp_path / "a.svg", [row], HEADER, CEILINGS
    )
    assert not list(tmp_path.iterdir())
