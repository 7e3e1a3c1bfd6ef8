"""Named sets of notebook parameters: `smoke` for tests, `quick` for a laptop, `paper` for the papers' own settings.

A notebook's `parameters` cell holds the quick values already, so an entry here names only what differs from that cell.
`PROFILES[profile][notebook][parameter]` is a plain scalar (int, float, str or bool); the pipeline checks each one
against the notebook before any kernel starts. Lists are comma-separated strings, as in `"0,1,2"`.
"""

NOTEBOOKS = (
    "00_start_here",
    "10_attention_probes",
    "20_gan_fid",
    "30_classification_kd",
    "35_ablation",
    "40_detection_kd",
    "50_early_kd",
    "60_titn",
    "70_deploy",
    "90_summary",
)

# Notebooks 10, 20 and 30 (and 70, which deploys 30's student) share one recipe: what one of them makes, the next finds.
_TEACHER_SMOKE = {
    "teacher": "train",
    "teacher_model": "vit_mnist_smoke",
    "teacher_epochs": 4,
    "teacher_lr": 5e-3,
    "teacher_images": 2000,
    "test_images": 500,
    "train_images": 300,
}
_GAN_ONLY_SMOKE = {"gan_epochs": 2, "gan_width": 32, "d_width": 8}
_GAN_SMOKE = {**_GAN_ONLY_SMOKE, "feature_images": 1000, "feature_epochs": 2, "fid_images": 200}
_STUDENT_SMOKE = {
    "student_model": "vit_mnist_smoke",
    "student_epochs": 2,
    "batch_size": 32,
    "real_images": 400,
}
_MAKERS_SMOKE = {
    "student_model": "vit_mnist_smoke",
    "student_epochs": 1,
    "batch_size": 32,
    "maker_images": 200,
    "generators": 2,
    "maker_steps": 4,
    "maker_batch": 20,
    "inversion_images": 40,
    "inversion_steps": 4,
    "inversion_batch": 20,
}
_STUDENT_PAPER = {
    "student_model": "deit_xtiny_patch4_28",
    "student_epochs": 50,
    "student_lr": 7.5e-4,
    "batch_size": 128,
    "student_precision": "bf16",
}
_TEACHER_PAPER = {
    "teacher": "train",
    "teacher_model": "vit_mnist_teacher",
    "teacher_epochs": 50,
    "train_images": 60_000,
}
# The paper gives Table 1's optimizer and the channels, but neither epochs nor λ: ours are said here.
_GAN_ONLY_PAPER = {
    "gan_epochs": 50,
    "gan_batch": 128,
    "gan_lr": 1e-4,
    "gan_width": 512,
    "d_width": 64,
    "dropout": 0.25,
    "lam": 1.0,
}
_GAN_PAPER = {
    **_GAN_ONLY_PAPER,
    "feature_images": 60_000,
    "feature_epochs": 5,
    "fid_images": 10_000,
}
# For makers 2 and 3 no source gives sizes: as many images as the paper's GAN makes, ten times quick's training.
_MAKERS_PAPER = {
    "claim_images": 0,
    "maker_precision": "bf16",
    "maker_images": 50_000,
    "generators": 96,
    "maker_steps": 100,
    "maker_batch": 128,
    "inversion_images": 10_000,
    "inversion_steps": 1000,
    "seeds": "0,1,2,3,4",
}

SMOKE: dict[str, dict] = {
    "00_start_here": {"test_images": 400},
    "10_attention_probes": {
        **_TEACHER_SMOKE,
        **_STUDENT_SMOKE,
        "statistics_images": 40,
        "scenes": 4,
    },
    "20_gan_fid": {**_TEACHER_SMOKE, **_GAN_SMOKE, **_MAKERS_SMOKE, "seeds": "0,1"},
    "30_classification_kd": {
        **_TEACHER_SMOKE,
        **_GAN_SMOKE,
        **_STUDENT_SMOKE,
        "synthetic_images": 400,
        "teacher_synthetic_epochs": 1,
        "seeds": "0,1",
    },
    "35_ablation": {
        **_TEACHER_SMOKE,
        **_GAN_ONLY_SMOKE,
        **_STUDENT_SMOKE,
        "synthetic_images": 400,
        "student_epochs": 1,
        "student_images": 200,
        "seeds": "0,1",
    },
    "40_detection_kd": {
        "size": 48,
        "train_scenes": 64,
        "test_scenes": 16,
        "teacher": "train",
        "teacher_model": "detr_nano",
        "teacher_epochs": 2,
        "student_epochs": 1,
        "batch_size": 16,
        "gan_epochs": 1,
        "gan_width": 16,
        "gan_d_width": 8,
        "arms": "train,plain,synthetic",
        "examples": 4,
        "threshold": 0.1,
    },
    "50_early_kd": {
        "images": 400,
        "test_images": 500,
        "passes": 1200,
        "shares": "0.5,1",
        "feature_images": 1000,
        "seeds": "0,1",
    },
    "60_titn": {
        "images": 300,
        "test_images": 500,
        "epochs": 1,
        "feature_images": 1000,
        "seeds": "0,1",
    },
    "70_deploy": {"test_images": 500, "calibration_images": 64, "parity_images": 64, "repeats": 20},
    "90_summary": {},
}

QUICK: dict[str, dict] = {
    "00_start_here": {},
    "10_attention_probes": {},
    "20_gan_fid": {},
    "30_classification_kd": {},
    "35_ablation": {},
    "40_detection_kd": {},
    "50_early_kd": {},
    "60_titn": {},
    "70_deploy": {},
    "90_summary": {},
}

PAPER: dict[str, dict] = {
    "00_start_here": {},
    "10_attention_probes": {
        **_TEACHER_PAPER,
        **_STUDENT_PAPER,
        "real_images": 60_000,
        "statistics_images": 5000,
    },
    "20_gan_fid": {**_TEACHER_PAPER, **_GAN_PAPER, **_STUDENT_PAPER, **_MAKERS_PAPER},
    "30_classification_kd": {
        **_TEACHER_PAPER,
        **_GAN_PAPER,
        **_STUDENT_PAPER,
        "real_images": 60_000,
        "synthetic_images": 50_000,
        "teacher_synthetic_epochs": 20,
        "seeds": "0,1,2,3,4",
    },
    "35_ablation": {
        **_TEACHER_PAPER,
        **_GAN_ONLY_PAPER,
        **_STUDENT_PAPER,
        "real_images": 60_000,
        "synthetic_images": 50_000,
        "student_epochs": 10,
        "student_images": 0,
        "seeds": "0,1,2,3,4",
    },
    # On the generated scenes unless data names a COCO folder; 800/1333 pixels apply to a folder's frames.
    "40_detection_kd": {
        "size": 512,
        "shortest": 800,
        "train_scenes": 5000,
        "test_scenes": 1000,
        "teacher": "train",
        "teacher_model": "detr_resnet50",
        "teacher_epochs": 300,
        "teacher_lr": 1e-4,
        "student_model": "detr_resnet18_2x2",
        "student_epochs": 150,
        "student_lr": 1e-4,
        "batch_size": 16,
        "giou_weight": 0.0,
        "box_distillation": 0.0,
        "attention_distillation": 0.0,
        "augment": 1.0,
        "gan_epochs": 100,
        "attention_share": 1.0,
        "gan_width": 512,
        "gan_d_width": 64,
        "gan_seeds": "0,1,2",
    },
    "50_early_kd": {
        "images": 60_000,
        "passes": 6_000_000,
        "shares": "0.1,0.25,0.5,1",
        "batch_size": 512,
        "lr": 1e-3,
        "student": "dearkd_tiny_32",
        "baseline": "dearkd_baseline_32",
        "patch_size": 4,
        "feature_images": 60_000,
        "feature_epochs": 10,
        "seeds": "0,1,2",
    },
    "60_titn": {
        "data": "cifar10",
        "scale": "paper",
        "images": 0,
        "epochs": 300,
        "batch_size": 1024,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 1e-4,
        "augmentation": "autoaugment",
        "feature_model": "vgg16_bn",
        "feature_images": 50_000,
        "feature_epochs": 100,
        "seeds": "0,1,2",
    },
    "70_deploy": {"calibration_images": 1024, "parity_images": 2048, "repeats": 1000},
    "90_summary": {},
}

PROFILES: dict[str, dict[str, dict]] = {"smoke": SMOKE, "quick": QUICK, "paper": PAPER}
