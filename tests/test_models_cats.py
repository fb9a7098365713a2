"""The CATs head against recorded outputs and gradients of the release, and its training-free start."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

import semimatch_kernels as smk
from semimatch.models import CatsHead, MeanHead

# The release's parameter names -> ours. `decoder.norm` exists there and is used nowhere.
PARTS = {
    "norm1": "cell_norm", "attn.qkv": "cell_attention.qkv", "attn.proj": "cell_attention.out",
    "norm4": "cell_mlp_norm", "mlp2.fc1": "cell_mlp.0", "mlp2.fc2": "cell_mlp.2",
    "norm3": "level_norm", "attn_multiscale.qkv": "level_attention.qkv",
    "attn_multiscale.proj": "level_attention.out",
    "norm2": "level_mlp_norm", "mlp.fc1": "level_mlp.0", "mlp.fc2": "level_mlp.2",
}  # fmt: skip
UNUSED = {"decoder.norm.weight", "decoder.norm.bias"}


def our_name(name: str) -> str:
    if name.startswith("proj."):
        return name.replace("proj.", "projections.", 1)
    if name.startswith("decoder.proj."):
        return name.replace("decoder.proj.", "out.", 1)
    if name.startswith("decoder.pos_embed_"):
        return "position_" + name[-1]
    _, _, number, rest = name.split(".", 3)
    part, _, leaf = rest.rpartition(".")
    return f"blocks.{number}.{PARTS[part]}.{leaf}"


def load(head: CatsHead, arrays: dict[str, np.ndarray]) -> None:
    """Fill every parameter of ``head``; squeezes the positional arrays [1,L,1,W,D/2] and [1,L,H,1,D/2]."""
    state = {}
    for name, array in arrays.items():
        if name in UNUSED:
            continue
        tensor = torch.from_numpy(np.asarray(array, np.float32))
        if "pos_embed" in name:
            tensor = tensor.squeeze(0).squeeze(1 if name[-1] == "x" else 2)
        state[our_name(name)] = tensor
    head.load_state_dict(state)


@pytest.fixture(scope="module")
def reduced_head(shared) -> CatsHead:
    with np.load(shared / "golden" / "public" / "u08_cats_post.npz") as file:
        channels, projection = file["all__channels"].tolist(), int(file["all__proj_dim"])
        heads, ratio, depth = (int(file[f"all__{n}"]) for n in ("num_heads", "mlp_ratio", "depth"))
    head = CatsHead(channels, (16, 16), projection, depth, heads, ratio)
    with np.load(shared / "golden" / "public" / "u08_cats_weights.npz") as file:
        load(head, {str(name): file[str(name)] for name in file["__key_order"]})
    return head


def features(case, side: str) -> list[torch.Tensor]:
    return [getattr(case, f"{side}_feat{level}") for level in range(7)]


@pytest.mark.parametrize("name", ["c0", "c1", "c2"])
def test_head_and_its_gradients_are_the_releases(golden, reduced_head, name):
    case = golden("u08_cats_post", name)[name]
    source, target = features(case, "src"), features(case, "trg")
    reduced_head.zero_grad()
    corr = reduced_head(source, target)
    torch.testing.assert_close(corr, case.refined_corr, rtol=0, atol=1e-5)

    both = smk.match(corr, ((16, 16), (16, 16)), 0.1, per="both")
    for match, expected in zip(both, (case.index_T_Svec, case.index_S_Tvec), strict=True):
        assert torch.equal(match.index, expected.flatten(1))
    coords = both[0].coords
    predicted = coords.transpose(1, 2).unflatten(2, (16, 16))
    torch.testing.assert_close(predicted, case.map, rtol=0, atol=2e-5)

    filtered = smk.correlation(source, target, mutual=True)
    torch.testing.assert_close(filtered[..., ::9, ::9], case.corr_filtered_sub, rtol=1e-5, atol=1e-6)
    for side, levels in (("src", source), ("trg", target)):
        projected = reduced_head._project(levels)[:, :, ::9]
        torch.testing.assert_close(projected, getattr(case, f"{side}_proj_sub"), rtol=1e-5, atol=1e-5)

    ((predicted * case.probe_map).sum() + (corr * case.probe_corr).sum()).backward()
    ours = dict(reduced_head.named_parameters())
    arrays = case.arrays
    assert set(arrays["no_grad_names"]) == UNUSED
    checked = set()
    for theirs, norm in zip(arrays["grad_names"], arrays["grad_norms"], strict=True):
        if not theirs.startswith(("proj.", "decoder.")):
            # The release trains its coordinate vectors by accident; we have none.
            assert theirs.endswith("_normal")
            continue
        gradient = ours[our_name(theirs)].grad
        assert gradient.double().norm().item() == pytest.approx(norm, rel=1e-4), theirs
        checked.add(our_name(theirs))
        if f"grad__{theirs}" in arrays:
            expected = torch.from_numpy(arrays[f"grad__{theirs}"]).reshape(gradient.shape)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert checked == set(ours)


def test_full_size_head_is_the_releases(golden):
    case = golden("u08_cats_post", "full")["full"]
    channels = case.channels.tolist()
    head = CatsHead(channels, (16, 16), case.proj_dim)
    # The recipe of the record: weights and features from seeded normal numbers, rounded to float16.
    random = np.random.RandomState(case.seed)
    arrays = {}
    for name, shape, total in zip(
        case.arrays["key_order"], case.arrays["key_shapes"], case.arrays["weight_sum"], strict=True
    ):
        name, shape = str(name), ast.literal_eval(str(shape))
        z = random.standard_normal(shape)
        norm = any(part.startswith("norm") for part in name.split("."))
        z = 0.05 * z if name.endswith("bias") else 1 + 0.1 * z if norm else case.std * z
        arrays[name] = z.astype(np.float16)
        assert arrays[name].astype(np.float64).sum() == pytest.approx(total, rel=1e-9, abs=1e-9), name
    load(head, arrays)
    random = np.random.RandomState(case.seed + 1)
    source, target = [], []
    for count, total in zip(channels, case.arrays["src_feat_sum"], strict=True):
        a = random.standard_normal((1, count, 16, 16))
        b = 0.7 * np.roll(a, (1, 2), (2, 3)) + 0.7 * random.standard_normal(a.shape)
        source.append(torch.from_numpy(a.astype(np.float16).astype(np.float32)))
        target.append(torch.from_numpy(b.astype(np.float16).astype(np.float32)))
        assert source[-1].double().sum().item() == pytest.approx(total, rel=1e-9, abs=1e-9)
    with torch.no_grad():
        corr = head(source, target)
    torch.testing.assert_close(corr, case.refined_corr, rtol=0, atol=1e-5)
    both = smk.match(corr, ((16, 16), (16, 16)), 0.1, per="both")
    predicted = both[0].coords.transpose(1, 2).unflatten(2, (16, 16))
    torch.testing.assert_close(predicted, case.map, rtol=0, atol=2e-5)
    assert torch.equal(both[0].index, case.index_T_Svec.flatten(1))
    assert torch.equal(both[1].index, case.index_S_Tvec.flatten(1))


def pyramid(channels, grid=(4, 4), seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, count, *grid, generator=generator) for count in channels]


def test_zero_init_starts_as_the_training_free_head_exactly_and_can_leave_it():
    source, target = pyramid([3, 5], seed=0), pyramid([3, 5], seed=1)
    head = CatsHead([3, 5], (4, 4), projection=8, zero_init=True)
    start = head(source, target)
    assert torch.equal(start, MeanHead()(source, target))
    start.square().sum().backward()
    assert head.out.weight.grad.abs().max() > 0
    torch.optim.SGD(head.parameters(), 0.1).step()
    assert not torch.equal(head(source, target), start)


def test_without_zero_init_the_start_differs():
    source, target = pyramid([3, 5], seed=0), pyramid([3, 5], seed=1)
    head = CatsHead([3, 5], (4, 4), projection=8)
    assert not torch.allclose(head(source, target), MeanHead()(source, target))


def test_non_square_grid_tells_rows_from_columns():
    head = CatsHead([3], (2, 4), projection=16)
    position = head._position().unflatten(1, (2, 4))  # [L,H,W,D]
    half = position.shape[-1] // 2
    # The column's half ignores the row, and the other way round.
    assert torch.equal(position[0, 0, :, :half], position[0, 1, :, :half])
    assert torch.equal(position[0, :, 0, half:], position[0, :, 3, half:])
    assert head(pyramid([3], (2, 4)), pyramid([3], (2, 4), 1)).shape == (2, 8, 8)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"projection is 9: .* 25 wide; expected a multiple of 12"):
        CatsHead([3], (4, 4), projection=9)
    head = CatsHead([3, 5], (4, 4), projection=8)
    with pytest.raises(ValueError, match=r"target: expected levels .*\(5, 4, 4\).*got .*\[2, 6, 4, 4\]"):
        head(pyramid([3, 5]), pyramid([3, 6]))
