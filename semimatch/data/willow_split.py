"""A training and a test part of PF-WILLOW that share no image.

PF-WILLOW has a test list only. To train on it, every sub-class gives 6 of its 10 images to training and 4 to
testing. The same photograph stands in several sub-classes: each (M) sub-class repeats five images of one
sibling and five of another. Equal photographs have equal file names, so the split is made by name: 70 names,
42 for training, 28 for testing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .pairs import DataError, PairList

TRAIN_SHARE = 0.6


def split_images(pairs: PairList, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Names (file name stems) of the training and of the test images.

    Sub-classes are filled in the order of how many images they share with others, most first. Those with the
    most are free to take any of their images; what they take then counts in their siblings, which fill up
    from their own.

    Args:
        pairs: PF-WILLOW's pairs, all of them.
        seed: the same seed gives the same split.

    Returns:
        Two disjoint sets that hold every image. In every sub-class of n images, round(0.6 n) are in the
        first.

    Raises:
        DataError: the sub-classes share images in a way that leaves no such split.
    """
    members: dict[str, set[str]] = {}
    for pair in pairs.pairs:
        members.setdefault(pair.category, set()).update((pair.source.stem, pair.target.stem))

    def shared(category: str) -> int:
        others = set().union(*(names for other, names in members.items() if other != category))
        return len(members[category] & others)

    generator = np.random.default_rng(seed)
    train: set[str] = set()
    test: set[str] = set()
    for category in sorted(members, key=lambda name: (-shared(name), name)):
        names = members[category]
        wanted = round(TRAIN_SHARE * len(names))
        open_names = sorted(names - train - test)
        take = wanted - len(names & train)
        if not 0 <= take <= len(open_names):
            what = f"{len(names & train)} of the {len(names)} images of {category} are in training already"
            raise DataError(
                pairs.root, "", what, f"sub-classes that share few enough images to give {wanted} to training"
            )
        chosen = {open_names[position] for position in generator.permutation(len(open_names))[:take]}
        train |= chosen
        test |= set(open_names) - chosen
    return frozenset(train), frozenset(test)


def split_pairs(pairs: PairList, seed: int) -> tuple[PairList, PairList]:
    """Training and test pairs: those of the list whose two images are both in the part (see `split_images`).

    On the public list these are 300 and 120 of the 900 rows.
    """
    parts = split_images(pairs, seed)

    def inside(names: frozenset[str]) -> list[int]:
        def known(path: Path) -> bool:
            return path.stem in names

        return [index for index, pair in enumerate(pairs.pairs) if known(pair.source) and known(pair.target)]

    return pairs.subset(inside(parts[0]), "trn"), pairs.subset(inside(parts[1]), "test")
