"""The table, the lists and the contact sheet; progress."""

import numpy as np
import pytest

from data_prep.pipeline import progress as progress_module
from data_prep.pipeline.progress import Progress
from data_prep.pipeline.quality import (
    COLUMNS,
    TILE,
    Quality,
    Tile,
    contact_sheet,
    is_head,
    to_display,
)
from data_prep.pipeline.work import Group, Part
from data_prep.source import Finding, Rejected, Unusable, Unwanted


def quality() -> Quality:
    found = Quality(0.05)
    found.add(
        Part(
            [Group("p", "s", "", 0, 90), Group("p", "t", "", 90, 95)],
            [Rejected(1, "cut off"), Rejected(2, "localizer", False), Rejected(3, "gap", count=4)],
            [
                Finding("s", "gantry tilt", "18 degrees", 90, True),
                Finding("u", "gap", "1 missing", 4, False),
                Finding("t", "gantry tilt", "9 degrees", 5, True),
            ],
        )
    )
    return found


def test_share_is_of_the_images_that_were_meant_to_be_used():
    assert quality().share == 0.05
    assert Quality(0.05).share == 0.0
    found = Quality(0.05)
    found.reject(Rejected.of(1, Unwanted("not CT")))
    assert found.share == 0.0
    found.reject(Rejected.of(2, Unusable("cut off")))
    assert found.share == 1.0


def test_table_tells_counts_by_reason():
    assert quality().table().splitlines() == [
        "images kept: 95",
        "rejected: 5 of 100 (5.0%, limit 5.0%)",
        "         4  gap",
        "         1  cut off",
        "left out by design: 1",
        "         1  localizer",
        "findings:",
        "    series    slices  finding",
        "         2        95  gantry tilt (kept as slices)",
        "         1         4  gap (rejected)",
    ]
    assert quality().summary() == {
        "rejected": {"gap": 4, "cut off": 1},
        "left_out": {"localizer": 1},
        "rejected_share": 0.05,
        "findings": {"gantry tilt": 2, "gap": 1},
    }


def test_contact_sheet_shows_the_window_in_proportion():
    wide = np.full((40, 80), -1000, np.int16)
    wide[:, 40:] = 400
    sheet = np.asarray(contact_sheet([Tile(wide, "hu", "a\n2 slices")]).convert("L"))
    middle = 4 + TILE // 2
    assert sheet[middle, 4 + TILE // 4] == 0
    assert sheet[middle, 4 + 3 * TILE // 4] == 255
    assert sheet[4 + TILE // 8, 4 + 3 * TILE // 4] == 0  # above a slice half as high as wide


@pytest.mark.parametrize(
    ("intensity", "value", "shown"), [("grey8", 51, 51), ("grey16", 0, 128), ("hu", -300, 128)]
)
def test_contact_sheet_knows_the_kinds_of_intensity(intensity, value, shown):
    image = np.full((TILE, TILE), value, np.int16)
    sheet = np.asarray(contact_sheet([Tile(image, intensity, "x")]).convert("L"))
    assert sheet[TILE // 2, TILE // 2] == shown


def test_contact_sheet_marks_irregular_series_and_breaks_rows():
    black = np.full((8, 8), -1024, np.int16)
    tiles = [Tile(black, "hu", "x", marked=i == 0) for i in range(COLUMNS + 1)]
    sheet = np.asarray(contact_sheet(tiles)).astype(int)
    one_row = np.asarray(contact_sheet(tiles[:1])).shape[0]
    assert sheet.shape[0] == 2 * one_row
    captions = sheet[4 + TILE : one_row]
    orange = (captions[..., 0] - captions[..., 2]) > 100
    assert orange[:, : TILE + 8].any()
    assert not orange[:, TILE + 8 :].any()


def test_progress_tells_rate_and_end(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress_module.time, "time", lambda: 0.0)
    monkeypatch.setattr(progress_module.time, "localtime", lambda s: s)
    monkeypatch.setattr(progress_module.time, "strftime", lambda _, s: f"{s:.0f} s")
    progress = Progress("files", 1000)
    progress.skip(400)
    for _ in range(10):
        now[0] += 1
        progress.step(20, slices=500)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "500 of 1,000 files, 500 slices/s, done at 25 s",
        "600 of 1,000 files, 500 slices/s, done at 20 s",
    ]


def test_a_head_is_shown_in_a_head_window_and_a_body_is_not():
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    radius = np.hypot(x, y)
    skull = np.where(radius < 0.8, 35, np.where(radius < 0.9, 900, -1000)).astype(np.int16)
    chest = np.where(radius < 0.9, 40, -1000).astype(np.int16)
    chest[(radius > 0.7) & (radius < 0.9)] = -90  # fat
    chest[20:40, 10:24] = -850  # lung
    chest[40:44, 30:34] = 700  # spine
    assert to_display(Tile(skull, "hu", ""))[32, 32] == round(255 * 35 / 80)
    assert to_display(Tile(chest, "hu", ""))[32, 40] == round(255 * 1040 / 1400)
    assert to_display(Tile(skull, "grey16", ""))[32, 32] == 128  # as it is
    assert not is_head(np.full((8, 8), -1024, np.int16))
