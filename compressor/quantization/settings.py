"""How calibration chooses a range, and what is rounded."""

from typing import Literal

Observer = Literal["min_max", "moving_average", "histogram", "percentile"]
Placement = Literal["layers", "wide"]
