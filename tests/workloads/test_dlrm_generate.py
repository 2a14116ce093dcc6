import gzip
import json

import numpy as np
import pytest
import torch

from mlperf_fast.errors import UserError
from mlperf_fast.ops.roc_auc import roc_auc
from mlperf_fast.workloads.dlrm import data, flights, generate, verify


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "dlrm" / "demo"
    return folder, generate.make_demo(folder)


def test_the_demo_is_a_valid_data_set_in_the_true_format(demo):
    folder, meta = demo
    assert verify.verify(folder) == meta
    assert (folder / data.TRAIN_FILE).stat().st_size == 262_144 * 160
    assert (folder / data.TEST_FILE).stat().st_size == 32_768 * 160
    assert sum(meta.table_rows) == 24_252
    assert [path.name for path in folder.parent.iterdir()] == ["demo"], "no temporary folder is left"


def test_the_demo_has_the_shape_of_the_real_data(demo):
    folder, meta = demo
    rows = np.fromfile(folder / data.TRAIN_FILE, dtype="<i4").reshape(-1, 40)
    assert 0.0315 < rows[:, 0].mean() < 0.035
    for table, count in enumerate(meta.table_rows):
        frequency = np.sort(np.bincount(rows[:, 14 + table], minlength=count))[::-1] / len(rows)
        zipf = np.arange(1, count + 1) ** -1.05
        assert frequency[0] == pytest.approx(zipf[0] / zipf.sum(), rel=0.05)
    # floor(exp(N(1.5, 1.2))): the median of exp is e^1.5 = 4.48.
    assert np.median(rows[:, 1:14], axis=0).tolist() == [4.0] * 13


def test_the_demo_can_be_learnt_but_not_without_error():
    labels, _, _, logits = generate.draw_with_teacher()
    test = slice(generate.TRAIN_SAMPLES, None)
    auc = roc_auc(torch.from_numpy(logits[test]).float(), torch.from_numpy(labels[test] == 1))
    assert 0.94 < auc < 0.98


def test_the_demo_is_made_once(demo):
    folder, meta = demo
    before = (folder / data.TRAIN_FILE).stat().st_mtime_ns
    assert generate.make_demo(folder) == meta
    assert (folder / data.TRAIN_FILE).stat().st_mtime_ns == before


def test_the_demo_keeps_other_peoples_folders(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="no data set of this program"):
        generate.make_demo(tmp_path)
    with pytest.raises(UserError, match="no data set of this program"):
        generate.make_demo(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_another_or_a_cut_data_set_is_no_demo(demo, tmp_path):
    folder, _ = demo
    with pytest.raises(UserError, match="holds another data set"):
        flights.make_flights(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (data.TEST_FILE, data.COUNTS_FILE, data.META_FILE):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / data.TRAIN_FILE).write_bytes(b"\0" * 160 * 9)
    with pytest.raises(UserError, match="holds 9 samples"):
        generate.make_demo(copy)


def test_a_second_process_that_makes_the_demo_too_is_harmless(demo, tmp_path, monkeypatch):
    folder, meta = demo
    out = tmp_path / "out"

    def quicker(new, target):
        target.mkdir()
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        raise OSError("Directory not empty")

    monkeypatch.setattr(generate.os, "rename", quicker)
    assert generate.make_demo(out) == meta
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Flights --------------------------------------------------------------------------------------------------------------

FLIGHT_FIELDS = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,"
    "dest,air_time,distance,hour,minute,time_hour"
)
SKY_FIELDS = "origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour"
PLANE_FIELDS = "tailnum,year,type,manufacturer,model,engines,seats,speed,engine"


def columns(fields, rows):
    return flights.read_csv([fields, *rows])


def tables():
    trips = columns(
        FLIGHT_FIELDS,
        [
            "2013,1,1,517,515,2,830,819,16,UA,1545,N1,EWR,IAH,227,1400,5,15,t5",
            "2013,1,1,NA,900,NA,NA,1100,NA,UA,7,N1,EWR,IAH,NA,1400,9,0,t9",
            "2013,1,1,533,529,4,850,830,15,AA,1714,NA,LGA,IAH,227,1416,5,29,t5",
            "2013,1,1,1200,1200,0,1400,1405,-5,UA,8,N1,EWR,MIA,120,1000,12,0,t12",
            "2013,1,2,1200,1200,0,1400,1405,99,UA,8,N1,EWR,MIA,120,1000,12,0,u12",
            "2013,1,1,530,529,1,850,830,20,UA,9,N2,EWR,IAH,227,1400,5,29,t5",
        ],
    )
    sky = columns(SKY_FIELDS, ["EWR,2013,1,1,5,39.02,-26.06,59.37,270,10.357,NA,0.05,1012.3,10,t5"])
    craft = columns(PLANE_FIELDS, ["N1,1999,Fixed,AIRBUS,A320,2,182,NA,Turbo"])
    return trips, sky, craft


def test_flights_become_rows():
    labels, integers, categories = flights.features(*tables())
    # The cancelled one is left out; 15 minutes late is not more than 15.
    assert labels.tolist() == [1, 0, 0, 1, 1]
    assert integers["scheduled minute"].tolist() == [315, 329, 720, 720, 329]
    assert integers["scheduled arrival"].tolist() == [499, 510, 845, 845, 510]
    assert integers["temperature"].tolist()[0] == 39.02
    assert np.isnan(integers["temperature"]).tolist() == [False, True, True, True, False]
    assert integers["plane's age"].tolist()[0] == 14
    # The cancelled flight counts: it was scheduled before the one at noon. A new day starts anew.
    rank = integers["plane's flight of the day"]
    assert [*rank[[0, 2, 3, 4]].tolist(), np.isnan(rank[1])] == [0, 2, 0, 0, True]
    assert (categories["plane"] < 0).tolist() == [False, True, False, False, False]
    same_origin_and_hour = categories["origin, hour"]
    assert same_origin_and_hour[0] == same_origin_and_hour[4] != same_origin_and_hour[1]
    assert len(np.unique(categories["date, carrier"])) == 3


def test_nothing_of_how_the_flight_went_is_a_feature():
    trips, sky, craft = tables()
    _, integers, categories = flights.features(trips, sky, craft)
    for field in ("dep_time", "dep_delay", "arr_time", "air_time"):
        trips[field] = ["NA"] * len(trips[field])
    trips["arr_delay"] = [value if value == "NA" else "-60" for value in trips["arr_delay"]]
    _, blind_integers, blind_categories = flights.features(trips, sky, craft)
    for name, column in {**integers, **categories}.items():
        assert np.array_equal(column, {**blind_integers, **blind_categories}[name], equal_nan=True), name


def test_flights_are_written_as_criteo_text(tmp_path):
    labels, integers, categories = flights.features(*tables())
    flights.write_days(tmp_path, labels, integers, categories)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"day_{day}.gz" for day in range(flights.DAYS)]
    lines = [gzip.decompress((tmp_path / f"day_{day}.gz").read_bytes()).decode() for day in range(flights.DAYS)]
    rows = [line.split("\t") for line in "".join(lines).splitlines()]
    assert {len(row) for row in rows} == {40}
    assert sorted(row[0] for row in rows) == ["0", "0", "1", "1", "1"]
    unknown_plane = next(row for row in rows if row[1] == "329" and row[3] == "1416")
    assert (unknown_plane[4], unknown_plane[17]) == ("", "")  # no weather, no tail number
    known = next(row for row in rows if row[1] == "315")
    assert len(known[17]) == 8
    assert known[5] == "13", "dew point -26.06 + 40"


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(flights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mlperf_fast\[flights\]'"):
        flights.make_flights(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_year(tmp_path):
    try:
        flights.find_tables()
    except UserError as error:
        pytest.skip(str(error))
    meta = flights.make_flights(tmp_path / "out")
    assert (meta.train_samples, meta.test_samples) == (261_877, 32_735)
    assert verify.verify(tmp_path / "out") == meta
    assert json.loads((tmp_path / "out" / data.META_FILE).read_text())["source"] == flights.SOURCE
    assert flights.make_flights(tmp_path / "out") == meta
