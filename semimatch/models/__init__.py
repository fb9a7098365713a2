"""The network: backbone, head, and what reads matches off a correlation.

backbone.py      Backbone, build_backbone     matcher.py   Matcher, build_matcher
efficientnet.py  EfficientNet-Lite0           mean.py      MeanHead: training-free
resnet.py        ResNet-101                   cats.py      CatsHead: transformer aggregator
                                              flow.py      flow fields and keypoint transfer
"""

from __future__ import annotations

from .backbone import BACKBONES, Backbone, WeightsError, build_backbone
from .cats import CatsHead
from .flow import ROUNDINGS, flow_from_coords, predict_points
from .matcher import Matcher, build_matcher
from .mean import MeanHead

__all__ = [
    "BACKBONES",
    "Backbone",
    "CatsHead",
    "MeanHead",
    "Matcher",
    "ROUNDINGS",
    "WeightsError",
    "build_backbone",
    "build_matcher",
    "flow_from_coords",
    "predict_points",
]
