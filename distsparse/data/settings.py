"""The keywords that image data sets share: each is declared once, its default stands in the factory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Validation = Annotated[int, Field(ge=0, description="number of training samples held out for validation")]
Normalize = Annotated[
    bool, Field(description="subtract the training images' mean and divide by their deviation, per channel")
]
CropPadding = Annotated[
    int, Field(ge=0, description="pixels of zeros around a training image before a random crop; 0 = no crop")
]
Flip = Annotated[bool, Field(description="mirror a training image left to right with probability 1/2")]
Limit = Annotated[
    int | None,
    Field(gt=0, description="use a fixed random subset of this many samples of each split; none = all"),
]
