"""`python -m dfkd_lib.detection train-teacher`: train a detector and write it where notebook 40 finds it; `overfit`: see
whether a detector can learn a few scenes by heart."""

import argparse
import shlex
import sys

from dfkd_lib.core import WorkbenchError, processes
from dfkd_lib.core.artifacts import Store, resolve
from dfkd_lib.detection.distill import DetectionTerms, train_detector
from dfkd_lib.detection.overfit import overfit, spread
from dfkd_lib.detection.shipped import ship_detector
from dfkd_lib.detection.source import SceneSource
from dfkd_lib.training import TrainConfig


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m dfkd_lib.detection")
    parser.add_argument("verb", choices=["train-teacher", "overfit"])
    parser.add_argument("--name", default="detr_micro_scenes", help="file name in data/teachers")
    parser.add_argument("--model", default="detr_micro")
    parser.add_argument("--data", default="scenes", help="the generated scenes, or a COCO folder")
    parser.add_argument("--size", type=int, default=80, help="side of the scenes in pixels")
    parser.add_argument("--scenes", type=int, default=20_000, help="generated training scenes")
    parser.add_argument(
        "--few", type=int, default=10, help="scenes to overfit, in --epochs steps on all"
    )
    parser.add_argument("--test-scenes", type=int, default=300)
    parser.add_argument(
        "--crop",
        type=float,
        default=0.0,
        help="cut a folder's frames around objects, see load_coco",
    )
    parser.add_argument("--crops", type=int, default=1, help="such crops of each frame")
    parser.add_argument(
        "--crop-spread",
        type=float,
        default=1.0,
        help="multi-scale: from crop / this to crop * this",
    )
    parser.add_argument(
        "--crop-anywhere",
        type=float,
        default=0.0,
        help="share of crops that lie anywhere on their frame",
    )
    parser.add_argument(
        "--weights", help="start from this .safetensors file, or folder in transformers' format"
    )
    parser.add_argument(
        "--augment", type=float, default=0.0, help="strength of scaling, shifting, change of light"
    )
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    args = parser.parse_args(argv)
    config = TrainConfig(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        weight_decay=1e-4,
        warmup_epochs=0.5,
        grad_clip=1.0,
        precision=args.precision,
        seed=args.seed,
    )
    source = SceneSource(
        args.data,
        args.size,
        args.scenes,
        args.test_scenes,
        args.seed,
        args.crop,
        crops=args.crops,
        crop_spread=args.crop_spread,
        crop_anywhere=args.crop_anywhere,
    )
    if args.verb == "overfit":
        few = spread(source.load("train"), args.few)
        found = overfit(args.model, few, args.epochs, args.lr, args.seed)
        if processes.is_main():
            print(", ".join(f"{step}: {ap:.2f}" for step, ap in found["curve"]))
            print(
                f"{args.model} on {len(few)} scenes of {args.data}: AP50 {found['AP50']:.3f}, AP {found['AP']:.3f}"
            )
        return
    made = train_detector(
        Store(),
        args.model,
        source,
        config,
        DetectionTerms(),
        augment=args.augment,
        weights=resolve(args.weights) if args.weights else None,
    )
    if not processes.is_main():
        return
    path = ship_detector(made, args.name, f"python -m dfkd_lib.detection {shlex.join(argv)}")
    print(
        f"{path}: AP {made.metrics['AP']:.3f}, AP50 {made.metrics['AP50']:.3f}, {made.seconds:.0f} s"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (
        WorkbenchError
    ) as error:  # it says what to fix; where in the library it arose helps nobody
        sys.exit(str(error))
