"""How calibration chooses a range."""

from typing import Literal

Observer = Literal["min_max", "moving_average", "histogram", "percentile"]
