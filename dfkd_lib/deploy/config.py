"""What is deployed, on which images it is measured, and which int8 form is packed."""

from typing import Literal

from pydantic import Field

from dfkd_lib.core import Config
from dfkd_lib.datasets import DataConfig


class DeployConfig(Config):
    """Settings of a deployment (METHODS A5)."""

    data: DataConfig = DataConfig()
    students: Literal["classification,detection", "classification", "detection"] = Field(
        "classification,detection", description="what is deployed"
    )
    scenes: str = Field("", description="the detector's folder of scenes, if it was moved since")
    int8: Literal["dynamic", "static"] = Field(
        "dynamic", description="the int8 classifier that is packed; both are measured"
    )
    int8_detector: Literal["dynamic", "static"] = Field(
        "static", description="the int8 detector that is packed"
    )
    calibration_images: int = Field(
        1024, ge=1, description="synthetic images behind the static int8 scales"
    )
    parity_images: int = Field(
        2048, ge=1, description="test images on which PyTorch and ONNX are compared"
    )
    repeats: int = Field(
        1000,
        ge=3,
        description="turns of the timing, each variant once a turn; fewer on a busy machine",
    )
    examples: int = Field(
        6, ge=1, le=64, description="scenes in which the packed detector's finds are shown"
    )
    fallback: bool = Field(
        False, description="train the preset's own student where no report names one"
    )
    seed: int = Field(0, ge=0, description="of the choice of images shown")
