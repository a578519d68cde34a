"""Named windows: which Hounsfield units become black and white. Imports no JAX.

A window of level L and width W, in HU, goes from L - W/2 to L + W/2. Levels and widths differ a
little between institutions; these are those of Radiopaedia, "Windowing (CT)"
(radiopaedia.org/articles/windowing-ct), and `soft_tissue` that of the viewer OHIF
(OHIF/Viewers, defaultWindowLevelPresets.ts).
"""

import enum


class Window(enum.Enum):
    """The window of a run's input; all but CUSTOM are in `WINDOWS`."""

    CUSTOM = "custom"  # the HU of `Intensity.window_hu`
    LUNG = "lung"
    MEDIASTINUM = "mediastinum"
    SOFT_TISSUE = "soft_tissue"
    ABDOMEN = "abdomen"
    BONE = "bone"
    BRAIN = "brain"
    WIDE = "wide"
    FULL = "full"


WINDOWS = {
    "lung": (-1350.0, 150.0),  # level -600, width 1500
    "mediastinum": (-125.0, 225.0),  # level 50, width 350
    "soft_tissue": (-160.0, 240.0),  # level 40, width 400
    "abdomen": (-150.0, 250.0),  # level 50, width 400
    "bone": (-500.0, 1300.0),  # level 400, width 1800
    "brain": (0.0, 80.0),  # level 40, width 80
    "wide": (-1000.0, 1000.0),  # air to dense bone: the default
    "full": (-1024.0, 3071.0),  # all values of 12-bit CT
}
"""Per name, the HU that become 0 and 1."""

GREY_RANGE = {"grey8": (0.0, 255.0), "grey16": (-32768.0, 32767.0)}
"""The stored values that become 0 and 1 where a dataset does not hold HU."""
