"""Notebooks, and what profiles change of notebooks whose settings are parameters of their own."""

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
PROFILES: dict[str, dict[str, dict]] = {
    "smoke": {
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
        }
    },
    "quick": {},
    "paper": {
        "40_detection_kd": {
            "size": 512,
            "shortest": 800,
            "train_scenes": 5000,
            "test_scenes": 1000,
            "teacher": "train",
            "teacher_model": "detr_resnet50",
            "teacher_epochs": 300,
            "teacher_lr": 0.0001,
            "student_model": "detr_resnet18_2x2",
            "student_epochs": 150,
            "student_lr": 0.0001,
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
        }
    },
}
