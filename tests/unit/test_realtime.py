"""D-FINE, DEIMv2, RT-DETR and RF-DETR: sizes as published, outputs and losses as transformers has them, weights, training."""

import json

import pytest
import torch
from families import SMALL_RFDETR, same_outputs
from hubs import stand_in
from torchvision.ops import box_convert
from transformers import RfDetrImageProcessor

from dfkd_lib import detection
from dfkd_lib.core import Store, WorkbenchError, artifacts
from dfkd_lib.datasets import SceneConfig, generate_scenes
from dfkd_lib.detection import DetectionWeights, DetectorConfig, SceneBatches, answers
from dfkd_lib.models import REALTIME, RealTimeDetector, count_parameters, create_detector
from dfkd_lib.models.detectors import HEAD, SPECS

ATTO, CLASSES = "deimv2_atto", ("bird", "helicopter", "drone", "plane")
# Of 80 classes: D-FINE and RT-DETRv2 publish 4M (3.8 without what training alone uses) and 20M, DEIMv2 0.5M, 1.5M, 3.6M,
# RF-DETR, of COCO's 91 numbers, 30.5M.
SIZES = {
    "deimv2_atto": (513_273, 0.5),
    "deimv2_nano": (3_617_189, 3.6),
    "deimv2_pico": (1_552_419, 1.5),
    "dfine_nano": (3_782_693, 3.8),
    "rtdetr_r18": (20_184_464, 20),
    "rtdetr_v2_r18": (20_184_464, 20),
}
RFDETR = "rfdetr_nano"  # in these tests but for its count, one with fewer and narrower layers
FIXED = {"network.model.decoder.up", "network.model.decoder.reg_scale"}  # constants of D-FINE
MASK = "network.model.backbone.backbone.embeddings.mask_token"  # of DINOv2's pretraining


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SPECS, RFDETR, SMALL_RFDETR)


def batch_of(count=2, size=64):
    batch = SceneBatches(generate_scenes(count, size=size), count)
    return next(batch(0, torch.Generator().manual_seed(0)))


def theirs(batch):
    """The objects of a batch as transformers' models take them."""
    return [
        {"class_labels": names[names >= 0], "boxes": boxes[names >= 0]}
        for names, boxes in zip(batch.labels, batch.boxes, strict=True)
    ]


@pytest.mark.parametrize("name", SIZES)
def test_the_published_parameter_counts(name):
    exact, millions = SIZES[name]
    assert count_parameters(create_detector(name, 80)) == exact
    assert exact / 1e6 == pytest.approx(millions, rel=0.04)


def test_the_published_parameter_count_of_rfdetr():
    with torch.device("meta"):
        network = REALTIME[RFDETR].network(91)
    assert count_parameters(network) == 30_467_298


@pytest.mark.parametrize("name", [ATTO, "dfine_nano", "rtdetr_v2_r18", RFDETR])
def test_outputs_are_transformers_with_a_column_for_nothing(name):
    torch.manual_seed(0)
    detector, images = create_detector(name, 4).eval(), torch.rand(2, 3, 256, 288)
    with torch.no_grad():
        found, known = detector(images), detector.network(pixel_values=detector.pixels(images))
    assert torch.equal(found.logits[..., :4], known.logits) and found.own is None
    assert torch.equal(found.boxes, known.pred_boxes.clamp(0, 1))
    chance = found.logits.sigmoid()
    assert torch.allclose(chance[..., 4], 1 - chance[..., :4].amax(-1))


@pytest.mark.parametrize("name", [*SIZES, RFDETR])
def test_the_loss_is_transformers_own_with_denoising(name):
    """In training mode, on the same noise; one scene has no object. RF-DETR has groups of queries in place of noise."""
    detector, batch = create_detector(name, 4).train(), batch_of(3)
    batch.labels[1] = -1
    torch.manual_seed(5)
    output = detector.network(pixel_values=detector.pixels(batch.images), labels=theirs(batch))
    if name == RFDETR:
        assert output.logits.shape[1] == 3 * detector.num_queries
    else:
        assert output.denoising_meta_values["dn_num_split"][1] == detector.num_queries
    torch.manual_seed(5)
    losses = detection.detection_step(DetectionWeights(own=0.5))(detector, batch, None)
    assert set(losses) == {"loss", "own"}
    assert losses["own"].item() == pytest.approx(output.loss.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx(0.5 * output.loss.item(), rel=1e-5)


def test_rfdetr_is_answered_as_its_processor_wants_it_and_judged_by_one_group():
    """Stretched to a square with its mean and deviation; detections as its processor reads them; in evaluation mode the
    loss is the one of a network without groups."""
    detector, batch = create_detector(RFDETR, 4).eval(), batch_of()
    frames = (batch.images[..., :48] * 255).to(torch.uint8)  # 64 x 48
    processor = RfDetrImageProcessor(size={"height": 96, "width": 96})
    given = processor(images=list(frames), return_tensors="pt")["pixel_values"]
    assert detector.input_size(64, 48) == (96, 96)  # 6 x 6 tokens for 20 queries; 64 would have 16
    # The processor smooths and rounds where it enlarges.
    assert (detector.pixels(frames / 255) - given).abs().mean() < 0.02
    with torch.no_grad():
        found = detector(frames / 255)
        known = detector.network(pixel_values=detector.pixels(frames / 255))
    read = processor.post_process_object_detection(known, threshold=0.0)[0]
    scores, order = found.logits[0, :, :4].sigmoid().flatten().sort(descending=True, stable=True)
    assert torch.allclose(read["scores"], scores[:20]) and len(read["scores"]) == 20
    boxes = box_convert(found.boxes[0, order[:20] // 4], "cxcywh", "xyxy")
    assert torch.allclose(read["boxes"].clamp(0, 1), boxes.clamp(0, 1), atol=1e-5)
    detector.network.config.group_detr = 1
    alone = detector.network(pixel_values=detector.pixels(batch.images), labels=theirs(batch)).loss
    detector.network.config.group_detr = 3
    own = detector(batch.images, objects=(batch.labels, batch.boxes)).own
    assert own.item() == pytest.approx(alone.item(), rel=1e-5)
    assert detector.network.config.group_detr == 3


@pytest.mark.parametrize("name", [ATTO, "dfine_nano", "rtdetr_v2_r18", RFDETR])
def test_everything_learns_norms_too(name):
    detector, batch = create_detector(name, 4).train(), batch_of()
    found = detection.queries(detector, batch.images, objects=(batch.labels, batch.boxes))
    # D-FINE predicts before its first layer too
    layers = {"rtdetr_v2_r18": 3, RFDETR: 2}.get(name, 4)
    assert found.logits.shape == (layers, 2, detector.num_queries, 5)
    assert found.boxes.shape == (*found.logits.shape[:3], 4)
    found.own.sum().backward()
    still = {n for n, p in detector.named_parameters() if p.grad is None}
    assert still == {"rtdetr_v2_r18": set(), RFDETR: {MASK}}.get(name, FIXED)
    norms = (m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)


@pytest.mark.parametrize(
    "name, size, seen",
    [
        (ATTO, (64, 64), (160, 160)),  # 10² + 5² tokens for 100 queries; 128 would have 80
        (ATTO, (512, 640), (512, 640)),
        ("dfine_nano", (80, 80), (256, 256)),  # 16² + 8² for 300
        ("dfine_nano", (500, 333), (512, 352)),
        ("rtdetr_v2_r18", (64, 128), (96, 192)),  # (12 · 24) + (6 · 12) + (3 · 6)
        (RFDETR, (300, 500), (512, 512)),
    ],
)
def test_images_are_enlarged_to_whole_tokens_no_fewer_than_queries(name, size, seen):
    assert create_detector(name, 4).input_size(*size) == seen


def test_a_teacher_of_the_old_kind_and_a_student_of_the_new_one_fit_together():
    """Losses of distillation count the queries that are no noise; the teacher's finds are objects where none are read."""
    torch.manual_seed(0)
    student, teacher = create_detector(ATTO, 4).train(), create_detector("detr_nano", 4).eval()
    with torch.no_grad():
        teacher.network.class_labels_classifier.bias[0] = 3.0  # sure of birds everywhere
    weights = {"distillation": 1.0, "box_distillation": 0.5, "attention_distillation": 1.0}
    step = detection.detection_step(DetectionWeights(**weights))  # no maps: the last says nothing
    batch = batch_of()._replace(labels=None, boxes=None)
    losses = step(student, batch, answers(teacher))
    assert set(losses) == {"loss", "own", "distillation", "box_distillation"}
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())
    back = detection.detection_step(DetectionWeights())(
        teacher.train(), batch_of(), answers(student.eval())
    )
    assert {"classification", "boxes", "distillation"} <= set(back) and torch.isfinite(back["loss"])


# Weights


def test_weights_go_round_and_others_are_refused(tmp_path):
    file = tmp_path / "atto.safetensors"
    for name, other in (("detr_nano", "detr_micro"), (ATTO, "deimv2_pico")):
        detector = create_detector(name, 4)
        artifacts.save_tensors(file, detector.state_dict())
        assert same_outputs(detector, create_detector(name, 4, weights=file))
        with pytest.raises(WorkbenchError, match="does not fit"):
            create_detector(other, 4, weights=file)
    with pytest.raises(WorkbenchError, match="is not timm's"):
        create_detector(ATTO, 4, backbone_weights=file)
    with pytest.raises(WorkbenchError, match=r"(?s)no pretrained weights.*dfine_nano"):
        create_detector(ATTO, 4, pretrained=True)


PUBLISHED = {
    "dfine_nano": "ustc-community/dfine-nano-coco",
    "deimv2_nano": "harshaljanjani/DEIMv2_HGNetv2_N_COCO_Transformers",
    "rtdetr_r18": "PekingU/rtdetr_r18vd",
    "rtdetr_v2_r18": "PekingU/rtdetr_v2_r18vd",
    RFDETR: "Roboflow/rf-detr-nano",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_detector_comes_from_the_hub(name, monkeypatch, tmp_path):
    """Saved with frozen norms, which count no batches, and of 80 classes: all but its class heads is taken over."""
    hub = stand_in(monkeypatch, tmp_path / "snapshot")
    theirs = create_detector(name, 80).network
    theirs.save_pretrained(hub["folder"])
    file = hub["folder"] / "model.safetensors"
    kept = {k: v for k, v in artifacts.load_tensors(file).items() if "batches_tracked" not in k}
    artifacts.save_tensors(file, kept)
    ours = create_detector(name, 4, pretrained=True)
    assert {asked for asked, _ in hub["asked"]} == {PUBLISHED[name]}
    own, known = ours.network.state_dict(), theirs.state_dict()
    other = {k for k, v in own.items() if v.shape != known[k].shape or not torch.equal(v, known[k])}
    assert other == {k for k in own if HEAD.search(f"network.{k}")}
    assert isinstance(ours, RealTimeDetector) and ours.kept is None


def test_rfdetr_is_read_as_its_authors_name_its_weights(tmp_path):
    """transformers saves it so: other names, and one matrix for queries, keys and values of the decoder."""
    ours = create_detector(RFDETR, 4)
    ours.network.save_pretrained(tmp_path)
    saved = artifacts.load_tensors(tmp_path / "model.safetensors")
    assert "transformer.decoder.layers.0.self_attn.in_proj_weight" in saved
    assert same_outputs(ours, create_detector(RFDETR, 4, weights=tmp_path))


@pytest.mark.parametrize("name", [ATTO, "detr_nano", RFDETR])
@pytest.mark.parametrize("saved_as", ["folder", "file"])
def test_classes_are_matched_by_name(name, saved_as, tmp_path):
    """Rows of the classes that both know are kept, in the new order; one that is new is as it is made."""
    old, new = ("Plane", "kite", "bird"), ("bird", "drone", "plane")
    known = create_detector(name, 3)
    source = tmp_path / "old.safetensors"
    if saved_as == "folder" and name != "detr_nano":
        source = tmp_path
        known.network.config.id2label = dict(enumerate(old))
        known.network.save_pretrained(source)
    else:
        artifacts.save_tensors(source, known.state_dict())
        artifacts.save_json(source.with_suffix(".json"), {"metrics": {"classes": old}})
    ours = create_detector(name, 3, weights=source, classes=new)
    assert ours.kept == ("bird", "plane")
    was, now = known.state_dict(), ours.state_dict()
    heads = [key for key in now if HEAD.search(key)]
    assert len(heads) >= 2
    for key in heads:
        assert torch.equal(now[key][0], was[key][2]) and torch.equal(now[key][2], was[key][0])
        assert not torch.equal(now[key][1], was[key][1]) or "bias" in key
        assert torch.equal(now[key][3:], was[key][3:])
    assert all(torch.equal(now[key], was[key]) for key in now if key not in heads)
    with pytest.raises(WorkbenchError, match="not as many"):
        create_detector(name, 4, weights=source, classes=new)
    if source.is_file():
        artifacts.save_json(source.with_suffix(".json"), {"classes": [*old, "a", "b"]})
        with pytest.raises(WorkbenchError, match="5 classes in the record"):
            create_detector(name, 3, weights=source, classes=new)
        source.with_suffix(".json").write_text("{")
        with pytest.raises(WorkbenchError, match="no readable old.json"):
            create_detector(name, 3, weights=source, classes=new)


def test_names_of_nothing_match_nothing(tmp_path):
    """transformers' own LABEL_0 ... name no class: heads of one size are taken as they are."""
    known = create_detector(ATTO, 4)
    known.network.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"]["0"] == "LABEL_0"
    ours = create_detector(ATTO, 4, weights=tmp_path, classes=CLASSES)
    assert ours.kept is None and same_outputs(known, ours)


# Training


def test_one_configuration_trains_it_like_any_other(tmp_path):
    store, source = Store(tmp_path), SceneConfig(size=48, train_scenes=8, test_scenes=4)
    train, test = source.scenes("train"), source.scenes("test")
    config = DetectorConfig(model=ATTO, epochs=1, batch_size=4, lr=1e-3, augment=0.0)
    step = detection.detection_step(DetectionWeights())
    made = detection.train(store, config, step, train, test)
    assert made.metrics["parameters"] == count_parameters(create_detector(ATTO, 4))
    assert made.json("history.json")[0]["own"] > 0
    opened, scenes = detection.load_detector(made), test.load()
    scores, boxes = detection.predict(opened, scenes.images)
    saved = detection.predictions(made)
    assert torch.allclose(scores, saved[0], atol=1e-5) and torch.allclose(
        boxes, saved[1], atol=1e-5
    )
    assert scores.shape == (4, SPECS[ATTO].sizes["num_queries"], 4)
    again = config.replace(weights=str(made.path / "model.safetensors"))
    again = detection.train(store, again, step, train, test)
    assert again.metrics["classes_kept"] == list(CLASSES) and "classes_kept" not in made.metrics
    seen = detection.seen_table({"first": made, "again": again})["started from"]
    assert seen.tolist() == [
        "nothing",
        f"a file of weights, with {', '.join(CLASSES)} of its classes",
    ]
