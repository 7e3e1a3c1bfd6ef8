"""Images and scenes: digits, MNIST, CIFAR, any image folder, any COCO folder, generated aerial scenes."""

from dfkd_lib.datasets.coco import ground_truth, load_coco
from dfkd_lib.datasets.coco_check import check_coco
from dfkd_lib.datasets.coco_repair import repair_coco
from dfkd_lib.datasets.config import DataConfig, load_splits
from dfkd_lib.datasets.embedded import embedded_table
from dfkd_lib.datasets.frames import FILL, SMALLEST, Frames, in_turn
from dfkd_lib.datasets.images import (
    ImageSet,
    check_classes_agree,
    random_flip,
    random_shift,
    to_float,
    to_uint8,
)
from dfkd_lib.datasets.scene_source import GENERATED, SCENES, SceneConfig, Scenes, open_scenes
from dfkd_lib.datasets.scenes import SceneSet, generate_scenes
from dfkd_lib.datasets.sources import NAMED, load_images, read_image
