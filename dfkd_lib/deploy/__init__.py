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
from dfkd_lib.deploy.package import copy_package, objects_found, predict_with
from dfkd_lib.deploy.stage import (
    deploy_student,
    deployment_table,
    speed_table,
    trade_off_of,
)
from dfkd_lib.deploy.tasks import check_exportable, find_student, scenes_of, teacher_of
