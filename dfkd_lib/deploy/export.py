"""From a PyTorch classifier to ONNX in float32 and in int8, and how far the two are apart."""

import copy
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dfkd_lib.errors import WorkbenchError

OPSET = 17  # the first with LayerNormalization, which every onnxruntime since 1.13 runs
INPUT, OUTPUT = "images", "logits"
PARITY = 1e-4  # largest |logit difference| that still counts as the same model in float32
# The embedding's convolution stays in float: int8 convolutions are slower here, and it is a hundredth of the work.
INT8_OPERATORS = ["MatMul", "Gemm"]


def export_onnx(model: nn.Module, sample: Tensor, path: str | Path) -> Path:
    """Write a classifier as ONNX with a batch of any size; returns the path.

    Args:
        model: images float32 (B, C, H, W) → logits (B, K). sample: such images, of which only shape and type matter.

    Raises:
        WorkbenchError: if the model holds an operator that ONNX has no form of; names it.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            # The tracing exporter: twenty times quicker than torch.export's for these models, it names the operator
            # that stands in the way, and onnxruntime's quantizer refuses the shapes that the other one notes.
            torch.onnx.export(model, (sample.cpu().float(),), str(path), input_names=[INPUT], output_names=[OUTPUT],
                              dynamic_axes=axes, opset_version=OPSET, dynamo=False)
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            named = re.search(r"operator '?([\w.:]+)'?", str(error))
            raise WorkbenchError("the model cannot be written as ONNX", expected=f"operators of ONNX opset {OPSET}",
                                 got=f"operator {named.group(1)}" if named else str(error)[:300],
                                 where=type(model).__name__,
                                 mend="write that step with operators ONNX has (matmul, softmax, where, gather, ...)"
                                 ) from None
    return Path(path)


def quantize_dynamic(source: str | Path, target: str | Path) -> Path:
    """Weights of the linear layers as int8; the scale of their inputs is found at run time, over each batch.

    Nothing is calibrated, so nothing is read. As the scale is one a batch, an image's logits depend a little on the
    images beside it: measure at the batch size of use.
    """
    from onnxruntime import quantization as ort

    with tempfile.TemporaryDirectory() as folder:
        # 7 bits of weight: sums of 8-bit products saturate on processors without VNNI or dot-product instructions.
        ort.quantize_dynamic(_prepared(source, folder), str(target), weight_type=ort.QuantType.QInt8, reduce_range=True,
                             op_types_to_quantize=INT8_OPERATORS)
    return Path(target)


def quantize_static(source: str | Path, target: str | Path, calibration: Tensor, batch_size: int = 64) -> Path:
    """Weights and inputs of the linear layers as int8, the inputs' scales fixed by calibration images.

    Args:
        calibration: float32 (N, C, H, W) in [-1, 1]; synthetic images keep the package as data-free as its student.
    """
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        batches = iter([{INPUT: batch.numpy()} for batch in calibration.split(batch_size)])

        def get_next(self):
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        ort.quantize_static(_prepared(source, folder), str(target), Reader(), quant_format=ort.QuantFormat.QOperator,
                            activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8, per_channel=True,
                            reduce_range=True, op_types_to_quantize=INT8_OPERATORS,
                            extra_options={"MatMulConstBOnly": True})
    return Path(target)


def _prepared(source: str | Path, folder: str) -> str:
    """The model with shapes inferred and constants folded, as the quantizer wants it, in a temporary folder."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = str(Path(folder) / "prepared.onnx")
    quant_pre_process(str(source), ready, skip_symbolic_shape=True)
    return ready


def open_session(path: str | Path):
    """An onnxruntime session of that file, on the processor, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session, images: np.ndarray | Tensor, batch_size: int = 64) -> np.ndarray:
    """Logits float32 (N, K) of images float32 (N, C, H, W)."""
    images = np.asarray(images)
    return np.concatenate([session.run(None, {INPUT: images[i:i + batch_size]})[0]
                           for i in range(0, len(images), batch_size)])


def largest_difference(model: nn.Module, session, images: Tensor) -> float:
    """Largest |logit difference| of PyTorch and ONNX on float32 images (N, C, H, W), alone and in batches of 64."""
    model = copy.deepcopy(model).cpu().float().eval()
    with torch.inference_mode():
        expected = torch.cat([model(batch) for batch in images.split(64)]).numpy()
    alone = images[:16]
    return float(max(np.abs(run_session(session, images) - expected).max(),
                     np.abs(run_session(session, alone, 1) - expected[:len(alone)]).max()))
