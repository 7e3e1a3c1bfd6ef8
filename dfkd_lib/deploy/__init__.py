"""The student as ONNX and int8: parity, size, latency, and a folder that runs without PyTorch (METHODS A5)."""

from dfkd_lib.deploy.export import (export_onnx, largest_difference, open_session, quantize_dynamic, quantize_static,
                                    run_session)
from dfkd_lib.deploy.measure import interleaved, session_accuracy
from dfkd_lib.deploy.stage import (copy_package, deploy_student, deployment_table, find_student, predict_with,
                                   teacher_of)

__all__ = ["copy_package", "deploy_student", "deployment_table", "export_onnx", "find_student",
           "interleaved", "largest_difference", "open_session", "predict_with", "quantize_dynamic", "quantize_static",
           "run_session", "session_accuracy", "teacher_of"]
