"""What a report's figures may be: finite, and in a range in which they can be drawn and divided by."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Total = Annotated[int, Field(ge=1, le=2**63 - 1)]
Milliseconds = Annotated[float, Field(gt=0, le=1e12)]
Microseconds = Annotated[float, Field(ge=0, le=1e15)]
Rate = Annotated[float, Field(ge=0, le=1e12)]
Factor = Annotated[float, Field(ge=1e-12, le=1e12)]


class Figures(BaseModel):
    """Figures that belong together; NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True)
