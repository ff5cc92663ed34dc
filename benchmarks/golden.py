"""Golden runs: a redesign must not change a bit of what is learned.

Trains toy runs of each kind through the command line, whose form is a promise, on pictures that it makes itself, in
fp32 on one thread, and prints the SHA-256 of the weights. On one machine two versions of catlip must print the same;
another processor adds up in another order, so nothing is compared across machines.

    uv run benchmarks/golden.py > before.txt      # then change things, and
    uv run benchmarks/golden.py --against before.txt
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

COLOURS = {"apple": (200, 30, 30), "lake": (30, 60, 200), "lawn": (30, 160, 40), "lemon": (230, 210, 40)}
SAME = ["--precision", "fp32", "--device", "cpu", "--workers", "1", "--seed", "3"]
PRETRAIN = ["--data", "train.tar", "--vocab", "vocab.tsv", "--samples", "640", "--batch-size", "32", *SAME]
RUNS = {
    "synsets": ["pretrain", "flickr8k_cpu", *PRETRAIN, "--image-size", "32", "--held-out", "train.tar"],
    "clip": ["pretrain", "flickr8k_clip", *PRETRAIN, "--image-size", "32"],
    "hybrid": ["pretrain", "flickr8k_siglip_synsets", *PRETRAIN, "--image-size", "32"],
    "curriculum": [
        "pretrain", "flickr8k_cpu", *PRETRAIN, "--backbone", "test_vit", "--image-size", "64", "--low-res", "32",
        "--low-res-share", "0.5", "--patch-keep", "0.5", "--patch-keep-share", "0.7", "--range-augment",
    ],
    "finetune": [
        "finetune", "synsets", "--train", "train.tar", "--test", "train.tar", "--classes", "classes.txt", "--init",
        "transfer", "--samples", "320", "--batch-size", "32", "--wise", "0.5", "--mixup", "0.2", *SAME,
    ],
    "detect": [
        "detect", "synsets", "--images", "pictures", "--boxes", "boxes.json", "--test-images", "pictures",
        "--test-boxes", "boxes.json", "--image-size", "64", "--samples", "16", "--batch-size", "4", "--channels", "16",
        "--hidden", "32", "--mask-layers", "1", "--anchors", "8", "16", "32", "48", "64", *SAME,
    ],
    "segment": [
        "segment", "synsets", "--train", "masks.tar", "--test", "masks.tar", "--image-size", "32", "--samples", "64",
        "--batch-size", "8", *SAME,
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=Path, help="what an earlier version printed")
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        found = {run: trained(run, Path(name)) for run in chosen(args.only, Path(name))}
    print(json.dumps(found, indent=2))
    if args.against:
        before = json.loads(args.against.read_text())
        changed = [run for run in found if found[run] != before[run]]
        sys.exit(f"changed: {', '.join(changed)}" if changed else 0)


def chosen(names: list[str], folder: Path) -> list[str]:
    """The runs to make, after the data that they need."""
    draw(folder)
    catlip(folder, "vocab", "train.tar", "--min-count", "2", "--out", "vocab.tsv")
    return [run for run in RUNS if run in names or run == "synsets"]


def trained(run: str, folder: Path) -> dict[str, str]:
    """Hashes of the weights and of the losses that a run leaves behind."""
    sys.stderr.write(f"{run} ...\n")
    catlip(folder, *RUNS[run], "--out", run)
    files = sorted((folder / run).rglob("*.safetensors"))
    found = {str(file.relative_to(folder / run)): sha256(file.read_bytes()).hexdigest()[:16] for file in files}
    log = [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in entry.items() if k in ("samples", "loss", "mAP", "top1")} for entry in log]
    return found | {"last loss": str([entry["loss"] for entry in kept if "loss" in entry][-1])}


def catlip(folder: Path, *args: str) -> None:
    """A command line in the folder, on one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CATLIP_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "catlip.cli", *args], cwd=folder, env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"catlip {' '.join(args)}\n{done.stdout}\n{done.stderr}")


def draw(folder: Path) -> None:
    """Pictures whose colour is the noun of their caption, with a class, a box and a mask each."""
    tars = {name: tarfile.TarFile(folder / name, "w") for name in ("train.tar", "masks.tar")}
    (folder / "pictures").mkdir()
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    images, annotations = [], []
    for i in range(96):
        noun, colour = list(COLOURS.items())[i % 4]
        random = np.random.default_rng(i)
        pixels = random.integers(90, 150, (56, 64, 3))
        left, top = int(random.integers(2, 30)), int(random.integers(2, 24))
        box = (slice(top, top + 26), slice(left, left + 28))
        pixels[box] = np.clip(np.array(colour) + random.integers(-20, 20, (26, 28, 3)), 0, 255)
        mask = np.full((56, 64), 4, np.uint8)
        mask[box] = i % 4
        picture, key = encoded(pixels.astype(np.uint8), "JPEG"), f"{i:04d}"
        add(
            tars["train.tar"],
            {
                f"{key}.jpg": picture,
                f"{key}.txt": f"a {noun} on the road\nthe {noun}".encode(),
                f"{key}.cls": str(i % 4).encode(),
            },
        )
        if i < 16:
            add(tars["masks.tar"], {f"{key}.jpg": picture, f"{key}.seg.png": encoded(mask, "PNG")})
            (folder / "pictures" / f"{key}.jpg").write_bytes(picture)
            images.append({"id": i, "file_name": f"{key}.jpg", "width": 64, "height": 56})
            corners = [left, top, left + 28, top, left + 28, top + 26, left, top + 26]
            annotations.append(
                {
                    "id": i + 1,
                    "image_id": i,
                    "category_id": i % 4 + 1,
                    "bbox": [left, top, 28, 26],
                    "area": 728,
                    "iscrowd": 0,
                    "segmentation": [corners],
                }
            )
    for tar in tars.values():
        tar.close()
    categories = [{"id": number + 1, "name": noun} for number, noun in enumerate(COLOURS)]
    (folder / "boxes.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, members: dict[str, bytes]) -> None:
    for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
