"""README and docs as the tests read them: their fenced blocks, and a folder that has whatever they name."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kdjax.experiment.saved import to_json
from tests.support import can_logs, folders
from tests.support.command import parsed

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("bash", "python", "text")  # text is what is printed


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that a block is, "# mine/data.py" in its first line; "" for lines to run as they stand."""
        match = re.match(r"# ([\w/]+\.py)\n", self.text)
        return match[1] if match else ""


def blocks(page: Path) -> list[Block]:
    text, found = page.read_text(), []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(page.name, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


def commands(page: Path) -> list[list[str]]:
    """The words of each command; what is joined by && or | is several."""
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    words = [shlex.split(part, comments=True) for line in lines for part in re.split(r" && | \| ", line)]
    return [line for line in words if line]


def sandbox(folder: Path) -> Path:
    """What the pages name: images, masks of two classes, folders of classes, CAN logs, working directories."""
    for i in range(24):
        name = f"{12 + i // 2:03}_{'left' if i % 2 else 'right'}.png"
        folders.picture(folder / "scans" / "images" / name, i, (40, 48))
        mask = np.zeros((40, 48), np.uint8)
        mask[4:20, 4:24], mask[24:36, 28:44] = 1, 2
        path = folder / "scans" / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    folders.busi(folder / "data" / "busi")
    folders.classes(folder / "photographs")
    folders.real_fake(folder / "faces")
    folders.real_fake_table(folder)
    reports(folder)
    for name in ("train_01", "test_01"):
        can_logs.write(folder / "logs" / name / "drive.csv", can_logs.plain(can_logs.messages()))
    can_logs.write(folder / "drive.csv", can_logs.plain(can_logs.messages(labelled=False)))
    for name, config in RUNS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(to_json(parsed(f"--config={config}")))
    return folder


def reports(folder: Path) -> None:
    """A table of images with captions, and the words of a tokenizer."""
    images = sorted((folder / "scans" / "images").glob("*.png"))
    lines = [
        f"{path.relative_to(folder)},{'CT' if i % 2 else 'MR'} of the chest,{'CT' if i % 2 else 'MR'},{i % 3}"
        for i, path in enumerate(images)
    ]
    (folder / "reports.csv").write_text("\n".join(["image,text,modality,urgent", *lines]) + "\n")
    (folder / "clinical-bert").mkdir()
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ct", "mr", "of", "the", "chest")
    (folder / "clinical-bert" / "vocab.txt").write_text("\n".join(words) + "\n")


RUNS = {  # working directories that the pages name, and what they were made with
    "runs/sam_distill": "sam_distill:smoke",
    "runs/seed_1": "sam_distill:smoke",
    "runs/sam_distill-folder": "sam_distill:folder=scans",
    "runs/classify_distill": "classify_distill:smoke",
    "runs/image_pipeline": "image_pipeline:smoke",
    "runs/medpix_distill": "medpix_distill:smoke",
    "runs/can_distill": "can_distill:smoke",
    "runs/forensics_distill": "forensics_distill:smoke",
}
