"""The guide's way from a folder of one's own to a label, command by command, at smoke size."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from dfkd_lib.core import REPOSITORY
from dfkd_lib.datasets import load_images

pytestmark = pytest.mark.slow
NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a user has it: three digits as larger pictures, 40 of each to learn from."""
    folder = tmp_path_factory.mktemp("own")
    for split, count in (("train", 40), ("test", 10)):
        images = load_images("mnist", split)
        for label, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for i in (images.labels == label).nonzero().flatten().tolist()[:count]:
                picture = Image.fromarray(images.pixels[i, 0].numpy()).resize((40, 40))
                picture.save(folder / split / name / f"{i}.png")
    return folder


def test_five_commands_lead_from_a_folder_to_a_label(folder, tmp_path):
    _, _, rest = (REPOSITORY / "notebooks" / "README.md").read_text().partition("in five\ncommands")
    commands = re.search("```\n(.*?)```", rest, re.DOTALL).group(1).splitlines()
    assert len(commands) == 5
    image, out = next((folder / "test" / "one").iterdir()), tmp_path / "reports"
    shown = []
    for command in commands:
        command = command.replace("/path/to/folder", str(folder))
        command = command.replace("/path/to/image.png", str(image))
        command = command.replace("reports/mine", str(out)).replace(
            ".venv/bin/python", sys.executable
        )
        if ".venv/bin/dfkd" in command:
            command = command.replace(".venv/bin/dfkd", f"{sys.executable} -m dfkd_lib")
            command += f" --profile smoke --artifacts {tmp_path / 'artifacts'}"
        done = subprocess.run(shlex.split(command), cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        shown.append(done.stdout)
    held = "train: 120 images (C, H, W) (3, 28, 28): one 40, two 40, zero 40"
    assert held in shown[0] and "test: 30 images" in shown[0]
    name, label, share = shown[-1].strip().split("\t")
    assert name == str(image) and label in NAMES and 0 < float(share) <= 1
    # The package is of the student that 30 has named, taught by the teacher that 10 has shown.
    found = json.loads((out / "metrics" / "30_classification_kd.json").read_text())
    used = {
        number: {one["key"] for one in json.loads(path.read_text())["artifacts"]}
        for path in (out / "metrics").iterdir()
        if (number := path.stem[:2])
    }
    assert found["metrics"]["student_synthetic_key"] in used["70"]
    (teacher,) = {key for key in used["30"] if key.startswith("teacher-")}
    assert teacher in used["10"] & used["70"]
