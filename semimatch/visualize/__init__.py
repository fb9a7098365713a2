"""Pictures: PCK curves, transferred keypoints, matches between any two images. No display is needed.

curves.py   plot_curves                    canvas.py    two images side by side, with smooth lines and dots
matches.py  draw_transfer, draw_matches    pictures.py  save_pictures: what a matcher does on pairs of a list
"""

from __future__ import annotations

from .curves import plot_curves
from .matches import draw_matches, draw_transfer
from .pictures import save_pictures

__all__ = ["draw_matches", "draw_transfer", "plot_curves", "save_pictures"]
