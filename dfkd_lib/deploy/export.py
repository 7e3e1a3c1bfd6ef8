"""From a PyTorch classifier or detector to ONNX in float32 and in int8, and how far the two are apart."""

import contextlib
import copy
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd_lib.attention.prefix import outputs_and_probe
from dfkd_lib.core import WorkbenchError
from dfkd_lib.models import Detector, RealTimeDetector

OPSET = 17  # the first with LayerNormalization, which every onnxruntime since 1.13 runs
INPUT, OUTPUTS = "images", ("logits", "boxes")
PARITY = 1e-4  # largest difference of a logit or of a box's coordinate that still counts as the same model in float32
# The same of a D-FINE, DEIMv2, RT-DETR or RF-DETR, in probabilities: rounding alone moves a float32 logit of D-FINE's by 1e-3.
PARITY_REALTIME = 1e-3
LINEAR = ["MatMul", "Gemm"]
# A detector's last layers keep float: int8 there costs two points of AP, and they are a hundredth of the work.
FLOAT_LAYERS = ("bbox_predictor", "class_labels_classifier", "ref_point_head")
FLOAT_LAYERS += ("bbox_embed", "class_embed", "bbox_head", "score_head", "sampling_offsets")
FLOAT_LAYERS += ("integral",)  # of DEIMv2: onnxruntime refuses its weights, a scale a column


class Deployed(nn.Module):
    """A model as it is exported: images → (logits,), or (logits, boxes) of a detector, without work that nobody reads.

    A transformer that answers by its class token skips what its last block would make of the patches: the same logits
    but for rounding (`attention.prefix`).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval()
        if isinstance(model, Detector):
            _attend_plainly(self.model.network)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.model, Detector):
            return tuple(self.model(images)[:2])
        return (outputs_and_probe(self.model, images, probe=False)[0],)


def _attend_plainly(network: nn.Module) -> None:
    """Let a network of transformers attend by `_attention`, its masks be those of `_key_bias`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("exported", _attention)
    AttentionMaskInterface.register("exported", _key_bias)
    network.config._attn_implementation = "exported"


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_,
) -> tuple[Tensor, None]:
    """Attention with its mask as one more feature of the keys.

    Added to every score of a whole frame, as the fused one is exported, a mask costs as much as half of a small detector.
    """
    query = query * scaling
    if attention_mask is not None:
        query = torch.cat([query, torch.ones_like(query[..., :1])], -1)
        bias = attention_mask.transpose(-2, -1).expand(-1, key.shape[1], -1, -1)
        key = torch.cat([key, bias], -1)
    return ((query @ key.transpose(-2, -1)).softmax(-1) @ value).transpose(1, 2), None


def _key_bias(*, attention_mask: Tensor | None, dtype: torch.dtype, **_) -> Tensor | None:
    """What the scores of each key are given, (B, 1, 1, S): 0, or of a masked one a number beside which they are nothing."""
    if attention_mask is None:
        return None
    return torch.where(attention_mask, 0.0, torch.finfo(dtype).min / 2).to(dtype)[:, None, None]


def export_onnx(model: nn.Module, sample: Tensor, path: str | Path) -> Path:
    """Write a classifier or a detector (whose boxes are a second output) as ONNX; returns the path.

    Args:
        sample: float32 (B, C, H, W), of which only shape and type matter: it fixes C, H and W, while B may be any.

    Raises:
        WorkbenchError: if the model holds an operator that ONNX has no form of; names it and its place.
    """
    model, sample = Deployed(model).eval(), sample.cpu().float()
    _fix_positions(model, sample)
    names = OUTPUTS if isinstance(model.model, Detector) else OUTPUTS[:1]
    axes = {name: {0: "batch"} for name in (INPUT, *names)}
    with warnings.catch_warnings(), torch.no_grad(), _silent():
        warnings.simplefilter("ignore")
        try:
            # The tracing exporter: twenty times quicker than torch.export's for these models, it names the operator
            # that stands in the way, and onnxruntime's quantizer refuses the shapes that the other one notes.
            torch.onnx.export(
                model,
                (sample,),
                str(path),
                input_names=[INPUT],
                output_names=list(names),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            named = re.search(r"operator '?([\w.:]+)'?", str(error))
            raise WorkbenchError(
                "the model cannot be written as ONNX",
                expected=f"operators of ONNX opset {OPSET}",
                got=str(error)[:200],
                where=_place(model, sample, named.group(1) if named else ""),
                fix="write that step with operators ONNX has (matmul, softmax, where, gather, ...)",
            ) from None
    return Path(path)


@torch.no_grad()
def _fix_positions(model: nn.Module, sample: Tensor) -> None:
    """Keep position embeddings that RF-DETR interpolates for each size of image as they are for the sample's: ONNX has no
    smoothed interpolation."""

    def once(find: Callable, known: Tensor | None = None) -> Callable:
        def positions(*of):
            nonlocal known
            known = find(*of) if known is None else known
            return known

        return positions

    asked = [module for module in model.modules() if hasattr(module, "interpolate_pos_encoding")]
    for module in asked:
        module.interpolate_pos_encoding = once(module.interpolate_pos_encoding)
    if asked:
        model(sample)


@contextlib.contextmanager
def _silent():
    """Standard output closed at its descriptor: the exporter prints the whole graph of what it cannot export."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept), os.close(nowhere)


def _place(model: Deployed, sample: Tensor, operator: str) -> str:
    """Which module of a model uses an operator, and in which line; only the model's type if that cannot be found."""
    name, kind = type(model.model).__name__, operator.split("::")[-1]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            nodes = torch.jit.trace(model, (sample,), check_trace=False).inlined_graph.nodes()
        except RuntimeError:
            return name
        node = next((node for node in nodes if node.kind().split("::")[-1] == kind), None)
    if node is None:
        return name
    module = node.scopeName().split("/")[-1].removeprefix("__module.model").removeprefix(".")
    return f"{name}{f', module {module}' if module else ''}, {node.sourceRange().splitlines()[0]}"


def check_export(model: nn.Module, shape: tuple[int, int, int]) -> float:
    """Export a model that need not be trained yet and compare it with PyTorch: seconds now, not after hours of training.

    Compared on bright and on dark random images (C, H, W), one at a time and three together, where the export saw two: a
    step that depends on the values or the number of its images shows, as a trace keeps only what its sample took.

    Returns:
        The largest difference of an output.

    Raises:
        WorkbenchError: on an operator that ONNX lacks, or if ONNX and PyTorch differ by more than `PARITY`.
    """
    bright = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    if isinstance(model, RealTimeDetector):
        model = _settled(model, bright)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(export_onnx(model, bright[:2], Path(folder) / "model.onnx"))
        both = (largest_difference(model, session, images) for images in (bright, -bright / 2))
        difference = max(both)
    return same_model(model, difference)


def _settled(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy whose norms know these images: untrained ones let features vanish, and which tokens become queries is chance."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches, of one here
    with torch.no_grad():
        model(images)
    return model.eval()


def same_model(model: nn.Module, difference: float) -> float:
    """The largest difference of an output of a model and of its ONNX form, if it is small enough; otherwise WorkbenchError."""
    parity = PARITY_REALTIME if isinstance(model, RealTimeDetector) else PARITY
    if not difference <= parity:
        raise WorkbenchError(
            "the ONNX form of the model is another model",
            where=type(model).__name__,
            got=f"a difference of {difference:.3g}",
            expected=f"outputs within {parity:g} of PyTorch's",
            fix="look for steps that depend on the values or the number of their images (if, for, "
            ".item(), len(images) in place of images.shape[0]): the export keeps only what its sample took",
        )
    return difference


def quantize_dynamic(source: str | Path, target: str | Path) -> Path:
    """Weights of the linear layers as int8; the scale of their inputs is found at run time, over each batch.

    Nothing is calibrated, so nothing is read. As the scale is one a batch, an image's logits depend a little on the
    images beside it: measure at the batch size of use. Convolutions stay in float: onnxruntime's with scales found at run
    time are several times slower than float ones.
    """
    from onnxruntime import quantization as ort

    return _quantized(source, target, ort.quantize_dynamic, op_types_to_quantize=LINEAR)


def quantize_static(source: str | Path, target: str | Path, calibration: Iterable[Tensor]) -> Path:
    """Weights and inputs of linear layers and convolutions as int8, the inputs' scales fixed by calibration images: batches
    of float32 (B, C, H, W) as the model wants them. Synthetic ones keep the package as data-free as its student."""
    from onnxruntime import quantization as ort

    class Reader(ort.CalibrationDataReader):
        batches = ({INPUT: batch.numpy()} for batch in calibration)

        def get_next(self):
            return next(self.batches, None)

    return _quantized(
        source,
        target,
        ort.quantize_static,
        calibration_data_reader=Reader(),
        quant_format=ort.QuantFormat.QOperator,
        activation_type=ort.QuantType.QUInt8,
        per_channel=True,
        op_types_to_quantize=[*LINEAR, "Conv", "Relu"],
        extra_options={"MatMulConstBOnly": True},
    )


def _quantized(source: str | Path, target: str | Path, quantize: Callable, **options) -> Path:
    """The model as int8, after shapes are inferred and constants folded as the quantizer wants it."""
    import onnx
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        ready = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(source), ready, skip_symbolic_shape=True)
        names = [node.name for node in onnx.load(ready, load_external_data=False).graph.node]
        in_float = [name for name in names if any(layer in name for layer in FLOAT_LAYERS)]
        # 7 bits of weight: sums of 8-bit products saturate on processors without VNNI or dot-product instructions.
        options |= {"weight_type": ort.QuantType.QInt8, "reduce_range": True}
        quantize(ready, str(target), nodes_to_exclude=in_float, **options)
    return Path(target)


def open_session(path: str | Path, threads: int = 1):
    """An onnxruntime session of that file, on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(runner, images: Tensor, batch_size: int = 64) -> tuple[Tensor, ...]:
    """(logits (N, K),) of a classifier, (logits (N, Q, K), boxes (N, Q, 4)) of a detector; a PyTorch model in evaluation
    mode or an onnxruntime session, on float32 images (N, C, H, W)."""
    found = []
    with torch.inference_mode():
        for batch in images.split(batch_size):
            if isinstance(runner, nn.Module):
                outputs = runner(batch)
                found.append((outputs,) if isinstance(outputs, Tensor) else outputs[:2])
            else:
                found.append(map(torch.from_numpy, runner.run(None, {INPUT: batch.numpy()})))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def largest_difference(model: nn.Module, session, images: Tensor) -> float:
    """Largest difference of an output of PyTorch and ONNX on float32 images (N, C, H, W), alone and in batches of 64.

    Of a detector that chooses its queries among the tokens, probabilities and boxes of each query are compared with the
    nearest query's: two tokens of nearly the same score change places by rounding alone.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

    expected, apart = run(copy.deepcopy(model).cpu().float().eval(), images), []
    try:
        runs = run(session, images), run(session, images[:16], 1)
    except (Fail, InvalidArgument, RuntimeException):  # it runs with one size of batch alone
        return float("inf")
    for found in runs:
        wanted = tuple(want[: len(got)] for got, want in zip(found, expected, strict=True))
        if any(got.shape != want.shape for got, want in zip(found, wanted, strict=True)):
            return float("inf")
        if isinstance(model, RealTimeDetector):
            rows, known = (torch.cat([part[0].sigmoid(), part[1]], -1) for part in (found, wanted))
            nearest = torch.cdist(known, rows).argmin(2, keepdim=True)
            found, wanted = (rows.take_along_dim(nearest, 1),), (known,)
        apart += [(got - want).abs().max() for got, want in zip(found, wanted, strict=True)]
    return float(torch.stack(apart).max())  # NaN if any of them is
