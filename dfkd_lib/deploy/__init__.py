"""The student as ONNX and int8: parity, size, latency, and a folder that runs without PyTorch (METHODS A5)."""

from dfkd_lib.deploy.config import DeployConfig
from dfkd_lib.deploy.export import (
    check_export,
    export_onnx,
    largest_difference,
    open_session,
    quantize_dynamic,
    quantize_static,
    run,
)
from dfkd_lib.deploy.measure import interleaved
from dfkd_lib.deploy.package import copy_package, objects_found, predict_with
from dfkd_lib.deploy.stage import (
    VARIANTS,
    deploy_student,
    deployment_table,
    measure_speed,
    speed_table,
    teacher_of,
    trade_off_of,
)
from dfkd_lib.deploy.tasks import check_exportable, find_student, scenes_of

__all__ = [
    "VARIANTS",
    "DeployConfig",
    "check_export",
    "check_exportable",
    "copy_package",
    "deploy_student",
    "deployment_table",
    "export_onnx",
    "find_student",
    "interleaved",
    "largest_difference",
    "measure_speed",
    "objects_found",
    "open_session",
    "predict_with",
    "quantize_dynamic",
    "quantize_static",
    "run",
    "scenes_of",
    "speed_table",
    "teacher_of",
    "trade_off_of",
]
