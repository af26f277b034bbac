"""Real files: what is indexed of them, and what geometry is measured. Skipped where the collections are not at hand."""
from pathlib import Path

import numpy as np
import pytest

from ich_study.cohort import index_folder
from ich_study.datasets import flow_table
from ich_study.series import scan_folder, series_flags

DATA = Path(__file__).resolve().parent.parent.parent/"shared"/"data"/"dcm_qa_ct"/"In"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real DICOM files are not here")


@pytest.fixture(scope="module")
def ge(): return scan_folder(DATA/"GE", progress=False)


@pytest.fixture(scope="module")
def philips(): return scan_folder(DATA/"Philips", progress=False)


def gaps(rows): return np.diff(np.sort(rows.position_mm))


def test_the_tilted_series_is_measured_along_its_normal(ge):
    assert len(ge) == 28 and ge.used.all() and ge.series_uid.nunique() == 1
    np.testing.assert_allclose(sorted(set(gaps(ge).round(1))), [1.1, 4., 7.])
    np.testing.assert_allclose([gaps(ge).min(), gaps(ge).max()], [1.08, 6.99], atol=.015)
    np.testing.assert_allclose(ge.tilt_deg, 18.5, atol=.01)
    assert sorted(ge.thickness_mm.unique()) == [4, 7]


def test_the_step_of_the_table_would_be_wrong_by_the_tilt(ge):
    at = ge.sort_values("position_mm")[["x_mm", "y_mm", "z_mm"]].to_numpy()
    steps = np.linalg.norm(np.diff(at, axis=0), axis=1)
    np.testing.assert_allclose(sorted(set(steps.round(2)))[0], 1.14, atol=.011)
    np.testing.assert_allclose(steps.max(), 7.38, atol=.011)


def test_an_unusual_protocol_is_no_missing_image(ge):
    assert set(series_flags(ge).iloc[0]) == {"tilted", "uneven"}


def test_every_file_of_a_disc_has_its_row(philips):
    assert philips.groupby("series_uid").used.sum()[lambda n: n > 0].tolist() == [28, 54]
    assert philips.reason.value_counts().to_dict() == {"derived": 11, "scout": 2}
    tilts = philips[philips.used].groupby("series_uid").tilt_deg.first()
    np.testing.assert_allclose(sorted(tilts), [0, 18.5], atol=.01)


def test_two_studies_of_the_disc_are_two_series():
    index, series = index_folder(DATA/"Philips", "disc", progress=False, screen=False)
    assert series.images.tolist() == [28, 54] and series.study.nunique() == 2 and series.manufacturer.eq("Philips").all()
    assert series.tilt_deg.gt(18).tolist() == [False, True] and series.blood_ml.isna().all()
    assert index.reason.value_counts().to_dict() == {"derived": 11, "scout": 2}


def test_a_person_passes_the_screen_and_a_test_object_does_not():
    index, _ = index_folder(DATA/"GE", "person", progress=False)
    assert index.used.all() and flow_table(index).loc["used"].tolist() == [0, 28, 1, 1]
    with pytest.raises(ValueError, match="not_head"): index_folder(DATA/"Philips", "disc", progress=False)
