"""What to do with irregular series and volumes."""

import enum


class Irregular(enum.Enum):
    """The policy for a tilted gantry, an oblique volume, uneven or missing slices.

    Attributes:
        REJECT: Leave out the whole series or volume.
        ACCEPT_2D: Keep its slices, which are good 2-D images; only the volume is not regular.
    """

    REJECT = "reject"
    ACCEPT_2D = "accept_2d"
