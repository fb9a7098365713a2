"""An embedded data set that needs no download, written in the layouts of the three public benchmarks.

Five categories (aeroplane, bird, bottle, car, chair) of drawn objects with 10 to 12 keypoints, which vary in
shape, colour, pattern, pose, light and surroundings. It is made to try the whole pipeline on, not to compare
methods with. PF-PASCAL and SPair-71k hold the same pictures; PF-WILLOW has its own. No picture is in two
splits.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat
from tqdm import tqdm

from . import pf_pascal, pf_willow, spair
from .demo_objects import CATEGORIES
from .demo_scene import Scene, draw_scene
from .pairs import DataError

MANIFEST = "manifest.json"
VERSION = 1  # raise it whenever other bytes come out for the same parameters
SPLITS = ("trn", "val", "test")
WILLOW_POINTS = 10  # as many as the benchmark has
_FEWEST_POINTS = 3  # jointly visible keypoints of a pair, as in SPair-71k


@dataclass(frozen=True)
class _Picture:
    """A scene and the name it is stored under."""

    name: str
    category: str
    scene: Scene

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self.scene.image.shape
        return width, height


def write_demo(
    out_dir: Path | str,
    seed: int = 0,
    images_per_category: Sequence[int] = (16, 4, 8),
    pairs_per_category: Sequence[int] = (40, 10, 30),
    willow_images_per_category: int = 10,
    progress: bool = True,
) -> Path:
    """Writes the data set; afterwards `out_dir` is a data root for every loader. Takes about ten seconds.

    The same parameters give the same bytes. A folder that holds the data set with the same parameters is left
    as it is. It is written elsewhere and moved, so a folder that exists is complete.

    Args:
        out_dir: new or empty folder.
        seed: decides everything that is random.
        images_per_category: pictures of each category for training, validation and testing (PF-PASCAL,
        SPair-71k).
        pairs_per_category: pairs of each category for the same three, at most. In PF-PASCAL's training list
            every pair stands twice, once to be mirrored, as in the public list.
        willow_images_per_category: pictures of each category for PF-WILLOW, whose list has all their ordered
        pairs.
        progress: show a bar, where stderr is a terminal.

    Returns:
        `out_dir`.

    Raises:
        DataError: `out_dir` holds something else, or the data set with other parameters, or cannot be made.
        ValueError: a number of images below 2 or of pairs below 1.
    """
    images, pairs = tuple(images_per_category), tuple(pairs_per_category)
    if len(images) != 3 or min(*images, willow_images_per_category) < 2:
        raise ValueError(f"images per category are {images} and {willow_images_per_category}; expected 3 and 1, from 2")
    if len(pairs) != 3 or min(pairs) < 1:
        raise ValueError(f"pairs_per_category is {pairs}; expected 3 numbers from 1")
    manifest = {
        "writer": "semimatch.data.demo",
        "version": VERSION,
        "seed": seed,
        "images_per_category": list(images),
        "pairs_per_category": list(pairs),
        "willow_images_per_category": willow_images_per_category,
    }
    out_dir = Path(out_dir)
    if _is_written(out_dir, manifest):
        return out_dir
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    except OSError as error:
        raise DataError(out_dir, "", f"cannot be written ({error.strerror})", "a folder that can be made") from error
    try:
        root = workshop / "root"
        root.mkdir()
        _write(root, seed, images, pairs, willow_images_per_category, progress)
        (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        try:
            os.rename(root, out_dir)  # fails where out_dir is a folder with something in it
        except OSError:
            if not _is_written(out_dir, manifest):  # another process was faster and did the same
                raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return out_dir


def _is_written(out_dir: Path, manifest: dict[str, Any]) -> bool:
    """Whether the folder is this data set. False: it may be written. DataError: it is something else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    try:
        found = json.loads((out_dir / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("writer") != manifest["writer"]:
        raise DataError(out_dir, "", "holds something else", "a new or empty folder")
    different = [f"{key} {found.get(key)} (now {value})" for key, value in manifest.items() if found.get(key) != value]
    if different:
        what = "was written with " + ", ".join(different)
        raise DataError(out_dir, "", what, "a new or empty folder, or the same parameters")
    return True


def _write(
    root: Path, seed: int, images: Sequence[int], pairs: Sequence[int], willow_images: int, progress: bool
) -> None:
    total = len(CATEGORIES) * (sum(images) + willow_images)
    bar = tqdm(total=total, desc="demo data", unit="image", disable=None if progress else True, leave=False)
    ids = itertools.count(1)
    with bar:

        def draw(part: str, count: int) -> dict[str, list[_Picture]]:
            drawn: dict[str, list[_Picture]] = {}
            for number, category in enumerate(CATEGORIES):
                for index in range(count):
                    # A stream of its own for every picture: other counts leave the pictures as they are.
                    place = [*SPLITS, "willow"].index(part)
                    rng = np.random.default_rng([seed, number, place, index])
                    scene = draw_scene(category, rng, complete=part == "willow")
                    drawn.setdefault(category, []).append(_Picture(f"{category}_{part}_{index:03d}", category, scene))
                    bar.update()
            return drawn

        for split, image_count, pair_count in zip(SPLITS, images, pairs, strict=True):
            pictures = draw(split, image_count)
            rng = np.random.default_rng([seed, SPLITS.index(split)])
            chosen = [pair for group in pictures.values() for pair in _choose_pairs(group, pair_count, rng)]
            everything = list(itertools.chain(*pictures.values()))
            _write_pascal(root / pf_pascal.FOLDER, split, everything, chosen)
            _write_spair(root / spair.FOLDER, split, everything, chosen, ids)
        _write_willow(root / pf_willow.FOLDER, draw("willow", willow_images))


def _choose_pairs(pictures: list[_Picture], count: int, rng: np.random.Generator) -> list[tuple[_Picture, _Picture]]:
    """At most `count` ordered pairs with enough points visible in both."""
    ordered = [
        (a, b)
        for a, b in itertools.permutations(pictures, 2)
        if (a.scene.visible & b.scene.visible).sum() >= _FEWEST_POINTS
    ]
    return [ordered[index] for index in sorted(rng.permutation(len(ordered))[:count])]


def _save_jpeg(picture: _Picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.scene.image).save(path, quality=92)


def _write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    path.write_text("\n".join(",".join(cells) for cells in [columns, *rows]) + "\n", encoding="utf-8")


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{value:.4f}" for value in values]


def _write_pascal(folder: Path, split: str, pictures: list[_Picture], pairs: list[tuple[_Picture, _Picture]]) -> None:
    for picture in pictures:
        _save_jpeg(picture, folder / "JPEGImages" / f"{picture.name}.jpg")
        annotation = folder / "Annotations" / picture.category / f"{picture.name}.mat"
        annotation.parent.mkdir(parents=True, exist_ok=True)
        scene = picture.scene
        keypoints = np.where(scene.visible[:, None], scene.keypoints, np.nan)
        annotation.write_bytes(_mat({"kps": keypoints, "bbox": scene.box[None]}))
    rows = []
    for pair in pairs:
        number = pf_pascal.CLASSES.index(pair[0].category) + 1
        cells = [f"{pf_pascal.RELEASE_FOLDER}/JPEGImages/{picture.name}.jpg" for picture in pair] + [str(number)]
        if split == "test":
            both = pair[0].scene.visible & pair[1].scene.visible
            for picture in pair:
                cells += [";".join(_numbers(axis)) for axis in picture.scene.keypoints[both].T]
            rows.append(cells)
        else:
            rows += [[*cells, flip] for flip in (("0", "1") if split == "trn" else ("0",))]
    columns = ["source_image", "target_image", "class"]
    columns += pf_pascal.TEST_COORDINATES if split == "test" else ["flip"]
    _write_csv(folder / pf_pascal.list_name(split), columns, rows)


def _mat(fields: dict[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file. Its first 116 bytes are a free text; scipy puts the time there, this a fixed text."""
    buffer = io.BytesIO()
    savemat(buffer, fields)
    return b"MATLAB 5.0 MAT-file, demo data".ljust(116) + buffer.getvalue()[116:]


def _write_willow(folder: Path, pictures: dict[str, list[_Picture]]) -> None:
    rows = []
    for category, group in pictures.items():
        (folder / category).mkdir(parents=True)
        for picture in group:
            Image.fromarray(picture.scene.image).save(folder / category / f"{picture.name}.png")
        for pair in itertools.permutations(group, 2):
            cells = [f"PF-dataset/{category}/{picture.name}.png" for picture in pair]
            for picture in pair:  # hidden points too: this benchmark annotates all of them
                cells += _numbers(picture.scene.keypoints[:WILLOW_POINTS].T.reshape(-1))
            rows.append(cells)
    _write_csv(folder / pf_willow.LIST, pf_willow.list_columns(WILLOW_POINTS), rows)


def _write_spair(
    folder: Path,
    split: str,
    pictures: list[_Picture],
    pairs: list[tuple[_Picture, _Picture]],
    ids: itertools.count,
) -> None:
    for picture in pictures:
        _save_jpeg(picture, folder / "JPEGImages" / picture.category / f"{picture.name}.jpg")
        path = folder / "ImageAnnotation" / picture.category / f"{picture.name}.json"
        _write_json(path, _image_annotation(picture))
    names = []
    for source, target in pairs:
        number = next(ids)
        name = f"{number:06d}-{source.name}-{target.name}:{source.category}"
        path = folder / "PairAnnotation" / split / f"{name}.json"
        _write_json(path, {"pair_id": number, "filename": name, **_pair_annotation(source, target)})
        names.append(name)
    for layout, lines in (("large", names), ("small", names[::2])):
        path = spair.layout_file(folder, split, layout)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields), encoding="utf-8")


def _integers(values: np.ndarray) -> list:
    return values.round().astype(int).tolist()


def _pose_name(scene: Scene) -> str:
    return "Left" if scene.mirrored else "Right"


def _image_annotation(picture: _Picture) -> dict[str, Any]:
    scene = picture.scene
    visible = zip(_integers(scene.keypoints), scene.visible, strict=True)
    return {
        "filename": f"{picture.name}.jpg",
        "image_width": picture.size[0],
        "image_height": picture.size[1],
        "image_depth": 3,
        "category": picture.category,
        "pose": _pose_name(scene),
        "truncated": int(scene.truncated),
        "occluded": int(scene.occluded),
        "difficult": 0,
        "bndbox": _integers(scene.box),
        "kps": {str(number): point if seen else None for number, (point, seen) in enumerate(visible)},
    }


def _pair_annotation(source: _Picture, target: _Picture) -> dict[str, Any]:
    a, b = source.scene, target.scene
    both = a.visible & b.visible
    sides = [np.sqrt(np.prod(scene.box[2:] - scene.box[:2])) for scene in (a, b)]
    fields: dict[str, Any] = {
        "category": source.category,
        "mirror": 0,
        "kps_ids": [str(k) for k in np.flatnonzero(both)],
    }
    for side, picture in (("src", source), ("trg", target)):
        fields[f"{side}_imname"] = f"{picture.name}.jpg"
        fields[f"{side}_imsize"] = [*picture.size, 3]
        fields[f"{side}_bndbox"] = _integers(picture.scene.box)
        fields[f"{side}_pose"] = _pose_name(picture.scene)
        fields[f"{side}_kps"] = _integers(picture.scene.keypoints[both])
    # Easy, medium, hard, as the public flags: the other way round is hard, turned or of another size in
    # degrees.
    fields["viewpoint_variation"] = 2 if a.mirrored != b.mirrored else int(abs(a.tilt - b.tilt) > 0.3)
    fields["scale_variation"] = int(np.digitize(max(sides) / min(sides), (1.25, 1.6)))
    fields["truncation"] = a.truncated + 2 * b.truncated
    fields["occlusion"] = a.occluded + 2 * b.occluded
    return fields
