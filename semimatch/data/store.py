"""Images decoded once and kept in memory, and batches made from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from .pairs import DataError, PairList

# What stands in the places of a batch that hold no keypoint, as in the public loaders of this field.
PADDING = -1.0


def decode(path: Path, photograph: bool = False) -> Image.Image:
    """A whole image as RGB; DataError that names the file where it is missing, no image or cut off.

    Args:
        photograph: show it as a person sees it: turned as its EXIF tag says, transparent places white, 16 bits scaled
            to 8. Benchmarks annotate the pixels as stored, and are read without.
    """
    try:
        with Image.open(path) as image:
            if photograph:
                return _as_seen(image)
            return image.convert("RGB")  # decodes every row, so a cut-off file fails here
    except FileNotFoundError:
        raise DataError(path, "", "no such file", "an image") from None
    except Exception as error:  # Pillow's plug-ins raise many kinds on damaged data
        what = f"cannot be decoded ({type(error).__name__}: {error})"
        raise DataError(path, "", what, "a complete image file") from error


def _as_seen(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")


class ImageStore:
    """All images of one or more lists, decoded once and resized to `size` x `size`.

    Both axes are resized on their own (the aspect ratio is not kept), bilinear with antialiasing.

    Args:
        paths: image files; repeated ones are decoded once.
        size: side of the resized images, pixels.
        progress: show a bar while decoding, where stderr is a terminal.

    Attributes:
        paths: the files in the order of `images`.
        size: as given.
        images: uint8 [N, 3, size, size].
        sizes: int64 [N, 2], (width, height) of the originals, pixels.

    Raises:
        DataError: an image is missing or does not decode.
        ValueError: `size` is not positive.
    """

    def __init__(self, paths: Iterable[Path], size: int = 256, progress: bool = True) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1 pixel")
        self.paths = sorted(set(paths))
        self.size = size
        self.images = torch.empty(len(self.paths), 3, size, size, dtype=torch.uint8)
        self.sizes = torch.empty(len(self.paths), 2, dtype=torch.int64)
        self._index = {path: index for index, path in enumerate(self.paths)}
        # Threads, not processes: Pillow lets others run while it decodes and resizes.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            done = pool.map(self._load, range(len(self.paths)))
            disable = None if progress else True
            try:
                for _ in tqdm(done, total=len(self.paths), desc="images", unit="image", disable=disable, leave=False):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # stop at once, not after decoding the rest
                raise

    def _load(self, index: int) -> None:
        image = decode(self.paths[index])
        self.sizes[index] = torch.tensor(image.size)
        resized = np.array(image.resize((self.size, self.size), Image.Resampling.BILINEAR))
        self.images[index] = torch.from_numpy(resized).permute(2, 0, 1)

    def __len__(self) -> int:
        return len(self.paths)

    def index(self, path: Path) -> int:
        """Position of an image in `images`; ValueError where it was not loaded."""
        if path not in self._index:
            raise ValueError(f"{path} is not in the store; expected one of the {len(self)} images it was made from")
        return self._index[path]


@dataclass
class Batch:
    """B pairs. Coordinates are pixels (x, y) of the resized images; P is the largest number of keypoints in
    the list.

    Attributes:
        source, target: uint8 [B, 3, size, size].
        source_points, target_points: float32 [B, P, 2]; -1 where `valid` is false. A point may lie up to one
            original pixel outside its image, because annotations do.
        valid: bool [B, P].
        source_box, target_box: float32 [B, 4], x1, y1, x2, y2.
        category: int64 [B], index into `PairList.categories`.
        index: int64 [B], row of the list.
    """

    source: Tensor
    target: Tensor
    source_points: Tensor
    target_points: Tensor
    valid: Tensor
    source_box: Tensor
    target_box: Tensor
    category: Tensor
    index: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class LoadedPairs:
    """A list of pairs with its images in memory. Mirrored rows (`Pair.flip`) are mirrored here, both images.

    Args:
        pairs: the list.
        store: holds at least `pairs.images`.
    """

    def __init__(self, pairs: PairList, store: ImageStore) -> None:
        self.pairs = pairs
        self.store = store
        numbers = {name: number for number, name in enumerate(pairs.categories)}
        rows = pairs.pairs
        self._source = torch.tensor([store.index(pair.source) for pair in rows], dtype=torch.int64)
        self._target = torch.tensor([store.index(pair.target) for pair in rows], dtype=torch.int64)
        self._flip = torch.tensor([pair.flip for pair in rows], dtype=torch.bool)
        self._category = torch.tensor([numbers[pair.category] for pair in rows], dtype=torch.int64)
        counts = torch.tensor([len(pair.source_keypoints) for pair in rows], dtype=torch.int64)
        width = int(counts.max()) if rows else 0
        self._valid = torch.arange(width) < counts[:, None]
        self._points, self._boxes = {}, {}
        for side, images in (("source", self._source), ("target", self._target)):
            scale = store.size / store.sizes[images].to(torch.float32)  # [N, 2]
            points = torch.zeros(len(rows), width, 2)
            for row, pair in enumerate(rows):
                keypoints = getattr(pair, f"{side}_keypoints")
                points[row, : len(keypoints)] = torch.from_numpy(keypoints)
            boxes = np.array([getattr(pair, f"{side}_box") for pair in rows], np.float32).reshape(-1, 4)
            self._points[side] = self._mirror_points(points * scale[:, None])
            self._boxes[side] = self._mirror_boxes(torch.from_numpy(boxes) * scale.repeat(1, 2))

    def _mirror_points(self, points: Tensor) -> Tensor:
        x, y = points.unbind(-1)
        x = torch.where(self._flip[:, None], self.store.size - 1 - x, x)
        return torch.stack([x, y], dim=-1).masked_fill(~self._valid[..., None], PADDING)

    def _mirror_boxes(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(-1)
        last = self.store.size - 1
        mirrored = torch.stack([last - x2, y1, last - x1, y2], dim=-1)
        return torch.where(self._flip[:, None], mirrored, boxes)

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """The rows `indices` of the list as one batch on the CPU."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        flip = self._flip[index]
        return Batch(
            source=self._images(self._source[index], flip),
            target=self._images(self._target[index], flip),
            source_points=self._points["source"][index],
            target_points=self._points["target"][index],
            valid=self._valid[index],
            source_box=self._boxes["source"][index],
            target_box=self._boxes["target"][index],
            category=self._category[index],
            index=index,
        )

    def _images(self, index: Tensor, flip: Tensor) -> Tensor:
        images = self.store.images[index]  # a copy
        images[flip] = images[flip].flip(-1)
        return images
