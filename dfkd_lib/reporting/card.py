"""A classifier as others take it: its weights in timm's layout, and a model card with the real images behind it."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import jinja2
import timm

from dfkd_lib import __version__, deploy
from dfkd_lib.core import Artifact, Store, WorkbenchError, explain, resolve, save_json
from dfkd_lib.core.ledger import EVALUATION, GUARDS
from dfkd_lib.distill.scores import gigaflops
from dfkd_lib.metrics.intervals import accuracy_interval
from dfkd_lib.models import MODELS, timm_form
from dfkd_lib.reporting.results import markdown_table, plain
from dfkd_lib.reporting.summary import (
    ancestors,
    artifacts_behind,
    data_free_of,
    in_words,
    learned_from,
    most_images,
    reads,
)
from dfkd_lib.training import test_logits

CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"
LOGITS = "test_logits.safetensors"
ITSELF = {"yes": "no real image", "not recorded": "images that nobody recorded"}
TEMPLATE = Path(__file__).with_name("card.md.j2")


def write_card(
    store: Store, key: str, folder: str | Path = "", source: str = "local-dir:FOLDER"
) -> Path:
    """Write a classifier as a folder that `timm.create_model("local-dir:…", pretrained=True)` opens, with a model card.

    Args:
        key: of a classifier's artifact, or the beginning of it.
        folder: for card, configuration and weights; by default reports/cards/<key>.
        source: what the card tells to open.

    Returns:
        The card's path.

    Raises:
        WorkbenchError: on a key of nothing or of no classifier, or an architecture of a notebook alone.
    """
    made = _classifier(store, explain.resolve_key(store.root, key))
    architecture, keywords = timm_form(made.settings["model"], made.settings["overrides"])
    folder = resolve(folder or f"reports/cards/{made.key}")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made.path / WEIGHTS, folder / WEIGHTS)
    config = _config(architecture, keywords, made.settings["classes"])
    save_json(folder / CONFIG, config)
    card = folder / CARD
    card.write_text(_text(store, made, config, source), encoding="utf-8")
    return card


def push(
    store: Store, key: str, repository: str, folder: str | Path = "", public: bool = False
) -> str:
    """Write a classifier's folder and upload it to the hub; returns its address.

    Args:
        repository: owner/name; made if there is none, private unless `public`.

    Raises:
        WorkbenchError: as `write_card`; without a token; if a repository is public and was not to be; what the hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise WorkbenchError(
            "nobody is logged in to the hub",
            expected="a token that may write",
            where=repository,
            fix="run .venv/bin/hf auth login once, or set HF_TOKEN",
        )
    folder = write_card(store, key, folder, f"hf-hub:{repository}").parent
    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        private = api.repo_info(repository).private
        if private or public:
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=[CARD, CONFIG, WEIGHTS],  # whatever else lies there
                commit_message=f"Artifact {key}",
            )
    except Exception as error:  # the client's HTTP library has its own, which change with it
        raise WorkbenchError(
            "the hub did not take it",
            got=" ".join(str(error).split())[:300],
            where=repository,
            expected="owner/name that the token may write to, and the network",
            fix=f"correct that and give the command again; what was to be uploaded is in {folder}",
        ) from None
    if not (private or public):
        raise WorkbenchError(
            "this repository is public already",
            where=repository,
            fix="add --public if everybody may have it, or name another repository",
        )
    return str(address)


def _classifier(store: Store, key: str) -> Artifact:
    """The artifact of that key; WorkbenchError if it is no classifier, naming one that it was made from, or another."""
    made = store.find(key)
    assert made is not None  # the key is of a folder with a manifest
    if _classifies(made.manifest):
        if (name := made.settings["model"]) not in MODELS:
            raise WorkbenchError(
                "the architecture of this model is in no file of the library",
                got=name,
                where=made.path,
                fix="add it to dfkd_lib/models, see CONTRIBUTING.md, and give the command again",
            )
        return made
    others = (*made.parents, *reversed(explain.finished(store.root)))
    near = (other for other in others if _classifies(explain.read_manifest(store.root, other)))
    found = next(near, None)
    raise WorkbenchError(
        "this artifact is no classifier",
        expected="one with class names, weights and answers on test images",
        got=f"stage {made.stage}",
        where=made.path,
        fix=f"give a classifier's key, as {found}" if found else "run notebook 30: it trains some",
    )


def _classifies(manifest: dict | None) -> bool:
    known = manifest or {}
    whole = {WEIGHTS, LOGITS} <= set(known.get("files", ()))
    return whole and bool(known.get("settings", {}).get("classes"))


def _config(architecture: str, keywords: dict, classes: Sequence[str]) -> dict:
    """A model folder's config.json as timm reads it; images as training has them: resized as they are, in [-1, 1]."""
    usual, channels = timm.get_pretrained_cfg(architecture), keywords["in_chans"]
    side = keywords.get("img_size", 32)
    heads = {True: ("head", "head_dist"), False: "head"}
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": keywords,
        "pretrained_cfg": {
            "input_size": [channels, side, side],
            "fixed_input_size": usual.fixed_input_size,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": [0.5] * channels,
            "std": [0.5] * channels,
            "num_classes": len(classes),
            "first_conv": usual.first_conv,
            "classifier": heads.get(keywords.get("distilled"), usual.classifier),
        },
    }


def _text(store: Store, made: Artifact, config: dict, source: str) -> str:
    """The model card."""
    names = ("key", "stage", "seconds", "ledger", "guard", "settings", "parents")
    record = {name: getattr(made, name) for name in names}
    behind = artifacts_behind({"": {"artifacts": [record]}}, store)
    own, before = reads(made.key, behind)
    lost = {parent for one in behind.values() for parent in one["parents"]} - set(behind)
    state, name = data_free_of(made.ledger), made.settings["model"]
    images = f"{learned_from(most_images(made.ledger)):,} real images"
    parents = (store.find(key) for key in made.parents)
    teachers = [one for one in parents if one is not None and _classifies(one.manifest)]
    template = jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True)
    return template.render(
        front=_front(made),
        name=name,
        teacher=next((one.settings["model"] for one in teachers), ""),
        classes=config["num_classes"],
        made=made,
        version=__version__,
        ours=config["architecture"] == name != "vgg16_bn",
        source=source,
        mode="L" if config["pretrained_cfg"]["input_size"][0] == 1 else "RGB",
        figures=_figures(made, teachers),
        images=plain(f"{len(test_logits(made)[1]):,} images of {_test_split(made)}"),
        size=_size(store, made),
        itself=ITSELF.get(state, images),
        guard=f"{made.guard}: {GUARDS.get(made.guard, 'it was made before that was recorded')}",
        own=plain(in_words(own)),
        behind=plain(in_words(before) + "".join(f"; not known of {key}" for key in lost)),
        lineage=_lineage(made.key, behind, lost),
        settings=_settings(made.settings),
    )


def _front(made: Artifact) -> str:
    """The hub's metadata, with the accuracy as its leaderboards read it."""
    from huggingface_hub import EvalResult, ModelCardData

    split = _test_split(made)
    task = "image-classification"
    accuracy = EvalResult(
        task_type=task,
        dataset_type=re.sub(r"[^\w.-]+", "-", split.split("/")[0]),
        dataset_name=split,
        metric_type="accuracy",
        metric_value=round(made.metrics["accuracy"], 6),
    )
    return ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=["timm", task, "knowledge-distillation"]
        + ["data-free"] * (data_free_of(made.ledger) == "yes"),
        model_name=made.settings["model"],
        eval_results=[accuracy],
    ).to_yaml()


def _test_split(made: Artifact) -> str:
    splits = (row["split"] for row in made.ledger if row["purpose"] == EVALUATION)
    return next(splits, "its test images")


def _figures(made: Artifact, teachers: Sequence[Artifact]) -> str:
    """Accuracy with the interval of its test sample, and the teachers', each on as many images."""
    rows = []
    for one in (made, *teachers):
        count, accuracy = len(test_logits(one)[1]), one.metrics["accuracy"]
        low, high = accuracy_interval(round(accuracy * count), count)
        who = "this model" if one is made else f"its teacher, {one.settings['model']}"
        rows.append((who, f"{100 * accuracy:.2f} %", f"{100 * low:.2f} to {100 * high:.2f}"))
    return markdown_table(("", "top-1 accuracy", "95 % interval"), rows)


def _size(store: Store, made: Artifact) -> str:
    """Bytes, parameters and operations; of a deployed one its variants' sizes, scores and times."""
    bytes_, parameters = (made.path / WEIGHTS).stat().st_size, made.metrics["parameters"]
    text = (
        f"{parameters:,} parameters, {gigaflops(made):.3g} GFLOP an image, {bytes_ / 1e3:,.0f} kB."
    )
    deploys = explain.finished(store.root, "deploy")
    manifests = {key: explain.read_manifest(store.root, key) or {} for key in deploys}
    found = {
        one["made"]: key for key, one in manifests.items() if made.key in one.get("parents", ())
    }
    if not found:
        return f"{text} Its latency was not measured; notebook 70 does."
    newest = store.find(found[max(found)])
    tables = (deploy.deployment_table(newest), deploy.speed_table(newest))
    shown = [markdown_table(table.columns, table.values) for table in tables]
    return "\n\n".join([f"{text} Deployed on {newest.metrics['cpu']} (`{newest.key}`):", *shown])


def _lineage(key: str, behind: dict[str, dict], lost: set[str]) -> str:
    """Every artifact behind one, itself first, with the real images that each read; and those that the store lacks."""
    rows = []
    for one in (key, *sorted(ancestors(key, behind))):
        record = behind[one]
        what = record["settings"].get("model") or record["settings"].get("maker") or ""
        rows.append((f"`{one}`", what, in_words(most_images(record["ledger"])), record["seconds"]))
    rows += [(f"`{one}`", "", "not known: it is not in the store", "") for one in sorted(lost)]
    head = ("it, and what it was made from", "model or maker", "real images read", "seconds")
    return markdown_table(head, rows)


def _settings(settings: dict) -> str:
    """How it was trained: its configuration, and what the step, augmentation and losses were told."""
    parts = ("train_name", "overrides", "config", "weights", "augmentation")
    known = {part: settings[part] for part in parts if part in settings}
    lines = [
        f"{name}.{inner} = {json.dumps(value)}" if inner else f"{name} = {value}"
        for name, values in known.items()
        for inner, value in (values.items() if isinstance(values, dict) else [("", values)])
    ]
    return "\n".join(lines).replace("```", "'''")
