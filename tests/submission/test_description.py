"""Any system description: never passed where the official checker refuses or dies."""

import logging

import closed_logs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_fast.submission import check

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(field=st.sampled_from(sorted(closed_logs.FIELDS)), value=JSON)
def test_any_system_description(tmp_path, field, value):
    path = closed_logs.description(tmp_path / "systems/petrel.json", **{field: value})
    (report,) = check.check([str(path)])
    from mlperf_logging.system_desc_checker import system_desc_checker

    logging.disable(logging.CRITICAL)
    try:
        theirs = system_desc_checker.check_system_desc(str(path), "training", "2.0.0")[0]
    except Exception:
        theirs = None
    finally:
        logging.disable(logging.NOTSET)
    if theirs is not True:
        assert not report.passes


def test_fields_of_a_description_are_the_official_ones(tmp_path):
    from mlperf_logging.system_desc_checker import system_desc_checker

    logging.disable(logging.CRITICAL)
    try:
        for field in closed_logs.FIELDS:
            path = closed_logs.description(tmp_path / "petrel.json", **{field: None})
            assert system_desc_checker.check_system_desc(str(path), "training", "2.0.0")[0] is False, field
        assert system_desc_checker.check_system_desc(str(closed_logs.description(path)), "training", "2.0.0")[0] is True
    finally:
        logging.disable(logging.NOTSET)
