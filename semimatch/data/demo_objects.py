"""The five categories of the embedded data set: how an object is built from parts, and where its keypoints
are.

Every function draws one random individual in the object's own coordinates (x right, y down, about -1 to 1),
facing right. The numbers below are the shapes; what varies is written as rng.uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .demo_draw import (
    Generator,
    Material,
    Part,
    by,
    ellipse,
    limb,
    plain,
    random_colour,
    random_material,
    spline,
    subdivide,
    turn,
)

GLASS = (0.62, 0.76, 0.86)


@dataclass(frozen=True)
class Drawing:
    """One individual: parts in painting order and keypoints {name: (x, y)} in a fixed order."""

    parts: list[Part]
    keypoints: dict[str, np.ndarray]


def _glass(rng: Generator) -> Material:
    return plain(np.clip(np.array(GLASS) * rng.uniform(0.25, 1.1) + rng.normal(0, 0.05, 3), 0, 1), 0.6)


def _dark(rng: Generator) -> Material:
    return plain(np.full(3, rng.uniform(0.05, 0.25)) + rng.uniform(0, 0.08, 3), 0.2)


def aeroplane(rng: Generator) -> Drawing:
    """Airliner or small plane from the side, the near wing towards the viewer."""
    r = rng.uniform(0.10, 0.17)  # radius of the fuselage
    nose, tail = rng.uniform(0.9, 1.05), -rng.uniform(0.85, 1.05)
    fin = rng.uniform(0.3, 0.48)
    lean = rng.uniform(0.05, 0.28)
    span, sweep = rng.uniform(0.42, 0.72), rng.uniform(0.1, 0.55)
    far = rng.uniform(0.2, 0.42)
    chord = rng.uniform(0.22, 0.36)
    root = rng.uniform(0.05, 0.2)
    body = random_material(rng)
    wing, finish = random_material(rng, body.base), random_material(rng)

    above = [(nose, r * 0.25), (nose - 0.12, -r * 0.6), (nose - 0.32, -r), (0, -r), (-0.5, -r * 0.95)]
    below = [(tail - 0.02, -r * 0.45), (-0.5, r * 0.7), (-0.1, r), (nose - 0.35, r), (nose - 0.1, r * 0.75)]
    fuselage = spline([*above, (tail, -r * 0.75), *below])
    fin_base, fin_end = np.array([tail + 0.36, -r * 0.85]), np.array([tail + 0.02, -r * 0.7])
    fin_top = np.array([tail + 0.02 - lean, -r * 0.8 - fin])
    fin_shape = [fin_base, by(fin_top, rng.uniform(0.08, 0.16), 0), fin_top, fin_end]
    tip = np.array([root - sweep - chord * 0.3, span])
    front, rear = np.array([root + chord / 2, r * 0.35]), np.array([root - chord / 2, r * 0.45])
    near_wing = [front, by(tip, chord * 0.38, 0), tip, rear]
    far_tip = np.array([root - sweep * 0.55 - chord * 0.2, -r - far])
    far_root = np.array([root, -r * 0.6])
    far_wing = [
        by(far_root, chord * 0.4, 0),
        by(far_tip, chord * 0.32, 0),
        far_tip,
        by(far_root, -chord * 0.4, 0),
    ]
    stabiliser = np.array([tail - 0.08, r * 0.1 + rng.uniform(0.08, 0.22)])
    tail_plane = [(tail + 0.3, -r * 0.3), by(stabiliser, 0.12, 0), stabiliser, (tail + 0.08, -r * 0.3)]
    engine = front + (tip - front) * 0.38 + (chord * 0.1, 0.05)
    length = rng.uniform(0.12, 0.18)

    parts = [
        Part(subdivide(far_wing), wing, 0.3),
        Part(subdivide(fin_shape), finish, 0.3),
        Part(fuselage, body, 0.9),
        Part(subdivide(tail_plane), finish, 0.4),
    ]
    parts += [Part(ellipse((x, -r * 0.25), 0.02, 0.028), _glass(rng), 0.2) for x in np.arange(-0.5, nose - 0.4, 0.11)]
    cockpit = np.array([nose - 0.17, -r * 0.42])
    window = spline([cockpit + d for d in ((0.06, 0.02), (0, -r * 0.3), (-0.09, -r * 0.3), (-0.08, r * 0.18))])
    parts += [
        Part(window, _glass(rng), 0.4),
        Part(ellipse(engine, length, 0.06), finish, 0.9),
        Part(ellipse(by(engine, length * 0.85, 0), 0.025, 0.055), _dark(rng), 0.2),
        Part(subdivide(near_wing), wing, 0.4),
    ]
    keypoints = {
        "nose": (nose, r * 0.25), "cockpit": cockpit, "near wing tip": tip, "near wing root, front": front,
        "near wing root, rear": rear, "far wing tip": far_tip, "fin top": fin_top, "fin base": fin_base,
        "tail end": (tail, -r * 0.55), "stabiliser tip": stabiliser, "engine": by(engine, length, 0),
    }  # fmt: skip
    return Drawing(parts, _arrays(keypoints))


def bird(rng: Generator) -> Drawing:
    """Standing bird from the side with a turning head, a wing that lifts, and two legs."""
    length, depth = rng.uniform(0.5, 0.68), rng.uniform(0.27, 0.42)
    slope = rng.uniform(-0.55, 0.05)  # of the body: a duck lies, a thrush stands
    body_skin, head_skin, wing_skin = random_material(rng), random_material(rng), random_material(rng)
    horn = plain(random_colour(rng, (0.5, 0.9), (0.4, 0.95)))

    def body(x: float, y: float) -> np.ndarray:
        return turn((x * length, y * depth), (0, 0), slope)

    upper = ((1, -0.1), (0.7, -0.75), (0, -0.95), (-0.8, -0.5))
    lower = ((-1.05, 0), (-0.6, 0.7), (0.1, 1), (0.75, 0.75))
    torso = spline([body(*point) for point in upper + lower])
    neck = body(0.85, -0.45)
    reach, nod = rng.uniform(0.22, 0.5), rng.uniform(-1.5, -0.6)
    head = neck + reach * np.array([np.cos(nod), np.sin(nod)])
    size = rng.uniform(0.16, 0.24)
    look = rng.uniform(-0.35, 0.45)
    beak = rng.uniform(0.16, 0.38)
    beak_tip = turn(by(head, size + beak, 0.03), head, look)
    bill = [turn(head + d, head, look) for d in ((size * 0.75, -0.09), (size * 0.75, 0.1))]
    eye = turn(by(head, size * 0.35, -size * 0.25), head, look)
    crown = turn(by(head, 0, -size), head, look)
    tail_base, fan = body(-0.95, -0.15), rng.uniform(0.1, 0.24)
    tail_turn, tail_length = slope + rng.uniform(-0.4, 0.4), rng.uniform(0.35, 0.6)
    tail_tip = turn(tail_base - (tail_length, 0), tail_base, tail_turn)
    feathers = [by(tail_tip, 0, -fan / 2), by(tail_tip, -0.03, 0), by(tail_tip, 0, fan / 2)]
    tail = [body(-0.75, -0.45), *feathers, body(-0.85, 0.25)]
    shoulder, lift = body(0.45, -0.3), slope + rng.uniform(-0.15, 0.9) * rng.choice([0.3, 1])
    wing_length = length * rng.uniform(1.1, 1.45)
    wing_tip = turn(shoulder - (wing_length, 0), shoulder, lift)
    leading = [(0.12, -0.02), (-0.1, -0.17), (-wing_length * 0.6, -0.13)]
    trailing = [(-wing_length, 0), (-wing_length * 0.55, 0.15), (-0.08, 0.17)]
    wing = [turn(shoulder + d, shoulder, lift) for d in leading + trailing]
    legs, feet = [], []
    reach_down = rng.uniform(0.3, 0.55)
    for hip, swing in ((body(-0.1, 0.75), rng.uniform(-0.5, 0.1)), (body(0.2, 0.8), rng.uniform(-0.1, 0.5))):
        foot = hip + reach_down * np.array([np.sin(swing), np.cos(swing)]) + (0, 0.08)
        knee = (hip + foot) / 2 + (-0.06, 0)
        toes = spline([foot + d for d in ((-0.05, -0.02), (0.15, 0.03), (-0.06, 0.035))], 4)
        legs += [Part(limb([hip, knee, foot], 0.07, 0.045), horn, 0.5), Part(toes, horn, 0.4)]
        feet.append(foot)
    nape, chin = by(head, -size * 0.85, -size * 0.2), by(head, size * 0.75, size * 0.6)
    throat = spline([by(neck, -0.2, 0.02), by(neck, 0.03, 0.26), chin, nape])
    parts = [
        Part(spline(tail), wing_skin, 0.4),
        *legs,
        Part(throat, head_skin, 0.5),
        Part(torso, body_skin, 0.8),
        Part(subdivide([bill[0], beak_tip, bill[1]], 3), horn, 0.4),
        Part(ellipse(head, size * 1.05, size, look), head_skin, 0.7),
        Part(spline(wing), wing_skin, 0.6),
        Part(ellipse(eye, 0.045, 0.045), plain((0.95, 0.9, 0.8)), 0.2),
        Part(ellipse(eye, 0.028, 0.028), plain((0.03, 0.03, 0.03), 0.8), 0.2),
    ]
    keypoints = {
        "beak tip": beak_tip, "eye": eye, "crown": crown, "breast": body(1, 0.1), "belly": body(0.1, 1),
        "wing front": shoulder, "wing tip": wing_tip, "back": body(0, -0.95), "tail tip": tail_tip,
        "rear foot": feet[0], "front foot": feet[1], "tail base, below": body(-0.85, 0.35),
    }  # fmt: skip
    return Drawing(parts, _arrays(keypoints))


def bottle(rng: Generator) -> Drawing:
    """Bottle with cap, neck, shoulder and label; left and right are those of the picture."""
    w, neck = rng.uniform(0.22, 0.36), rng.uniform(0.07, 0.13)
    shoulder, neck_base = rng.uniform(-0.4, -0.05), rng.uniform(-0.62, -0.5)
    shoulder = max(shoulder, neck_base + 0.12)
    waist = rng.uniform(0.82, 1.05)
    top, cap = -rng.uniform(0.92, 1.0), rng.uniform(0.1, 0.2)
    label_top = shoulder + rng.uniform(0.1, 0.2)
    label_low = rng.uniform(max(label_top + 0.3, 0.4), 0.8)
    glass, paper, lid = random_material(rng), random_material(rng), random_material(rng)
    side = [(neck, top + cap), (neck, neck_base), (w * 0.82, shoulder - 0.06), (w, shoulder + 0.05)]
    side += [(w * waist, 0.25), (w, 0.88), (w * 0.88, 0.99)]
    outline = np.array(side + [(-x, y) for x, y in side[::-1]])
    bulge = rng.uniform(0.02, 0.06)

    def band(y1: float, y2: float, half1: float, half2: float) -> np.ndarray:
        lower = [(x * half2, y2 + bulge * (1 - x * x)) for x in np.linspace(1, -1, 9)]
        return np.array([(x * half1, y1 + bulge * (1 - x * x)) for x in np.linspace(-1, 1, 9)] + lower)

    lid_half = neck * rng.uniform(1.05, 1.35)
    print_y = label_top + (label_low - label_top) * rng.uniform(0.3, 0.5)
    parts = [
        Part(_rounded(outline), glass, 0.9),
        Part(band(top, top + cap, lid_half, lid_half), lid, 0.8),
        Part(band(neck_base - 0.02, neck_base + 0.04, neck * 1.1, neck * 1.15), lid, 0.6),
        Part(band(label_top, label_low, w * 1.01, w * 0.99), paper, 0.35),
        Part(band(print_y, print_y + 0.1, w * 0.8, w * 0.8), plain(random_colour(rng)), 0.1),
    ]
    corners = {
        "cap top": (lid_half, top), "neck base": (neck, neck_base), "shoulder": (w, shoulder + 0.05),
        "label top": (w, label_top), "label bottom": (w, label_low), "base": (w * 0.93, 0.97),
    }  # fmt: skip
    keypoints = {}
    for name, (x, y) in corners.items():
        keypoints[f"{name}, left"], keypoints[f"{name}, right"] = (-x, y), (x, y)
    return Drawing(parts, _arrays(keypoints))


def car(rng: Generator) -> Drawing:
    """Car from the side: saloon, hatchback, coupe or van, by where the cabin begins and ends."""
    front, rear = rng.uniform(0.92, 1.05), -rng.uniform(0.92, 1.05)
    sill, belt = 0.26, rng.uniform(-0.16, -0.02)
    roof = belt - rng.uniform(0.24, 0.44)
    bonnet = rng.uniform(0.3, 0.62)
    rake = rng.uniform(0.12, 0.36)
    boot = rear + rng.uniform(0.02, 0.42)
    fall = rng.uniform(0.05, 0.3)
    hood_drop = rng.uniform(0.02, 0.1)
    paint, wheel_size = random_material(rng), rng.uniform(0.17, 0.235)
    axles = np.array([[rear + rng.uniform(0.3, 0.4), sill], [front - rng.uniform(0.28, 0.38), sill]])
    wind_low, wind_top = np.array([bonnet, belt]), np.array([bonnet - rake, roof])
    back_low = np.array([boot, belt])
    back_top = np.array([min(boot + fall, bonnet - rake - 0.35), roof + 0.01])
    bonnet_line = [
        (front, belt + 0.22),
        (front - 0.05, belt + hood_drop + 0.03),
        (bonnet + 0.05, belt - 0.005),
    ]
    belt_line = [(0, belt - 0.01), (boot, belt), (rear + 0.03, belt + 0.04)]
    sill_line = [(rear, belt + 0.2), (rear + 0.04, sill), (0, sill + 0.02), (front - 0.04, sill)]
    lower = spline(bonnet_line + belt_line + sill_line)
    cabin = _rounded(np.array([by(wind_low, 0.06, 0.03), wind_top, back_top, by(back_low, -0.03, 0.03)]))
    pillar = (wind_top[0] + back_top[0]) / 2 + rng.uniform(-0.1, 0.1)
    low, high = belt - 0.005, roof + 0.055
    fore = [
        (pillar + 0.03, high),
        (wind_top[0] - 0.01, high),
        (wind_low[0] - 0.06, low),
        (pillar + 0.03, low),
    ]
    aft = [(pillar - 0.03, high), (back_top[0] + 0.03, high), (back_low[0] + 0.1, low), (pillar - 0.03, low)]
    light = np.array([front - 0.09, belt + hood_drop + 0.1])
    rear_light = np.array([rear + 0.06, belt + 0.11])
    handle = np.array([pillar + 0.12, belt + 0.07])
    mirror = np.array([wind_low[0] - rake * 0.1 - 0.03, belt - 0.03])
    glass, rim, trim = _glass(rng), plain(random_colour(rng, (0, 0.3), (0.4, 0.95))), _dark(rng)
    parts = [
        Part(cabin, paint, 0.5),
        Part(subdivide(fore), glass, 0.3),
        Part(subdivide(aft), glass, 0.3),
        Part(lower, paint, 0.7),
        Part(limb([(rear + 0.3, sill - 0.02), (front - 0.3, sill - 0.02)], 0.05, 0.05), trim, 0.2),
        Part(limb([(pillar, belt), (pillar, sill - 0.05)], 0.014, 0.014), trim, 0.0),
        Part(limb([(bonnet - 0.06, belt + 0.02), (bonnet - 0.1, sill - 0.05)], 0.014, 0.014), trim, 0.0),
        Part(limb([by(handle, -0.05, 0), by(handle, 0.05, 0)], 0.028, 0.028), trim, 0.4),
        Part(ellipse(light, 0.08, 0.045, 0.3), plain((0.97, 0.95, 0.75), 0.8), 0.4),
        Part(ellipse(rear_light, 0.035, 0.06), plain((0.8, 0.08, 0.06), 0.6), 0.4),
        Part(ellipse(mirror, 0.05, 0.04), paint, 0.6),
    ]
    spokes = rng.integers(4, 8)
    start = rng.uniform(0, 6)
    for axle in axles:
        parts += [
            Part(ellipse(axle, wheel_size * 1.14, wheel_size * 1.1), _dark(rng), 0.0),
            Part(ellipse(axle, wheel_size, wheel_size), plain((0.1, 0.1, 0.11), 0.1), 0.5),
            Part(ellipse(axle, wheel_size * 0.62, wheel_size * 0.62), rim, 0.4),
        ]
        for k in range(spokes):
            a = start + 2 * np.pi * k / spokes
            hole = axle + wheel_size * 0.4 * np.array([np.cos(a), np.sin(a)])
            parts.append(Part(ellipse(hole, wheel_size * 0.13, wheel_size * 0.09, a), trim, 0.0))
    keypoints = {
        "rear wheel": axles[0], "front wheel": axles[1], "headlight": light, "rear light": rear_light,
        "windscreen base": wind_low, "roof, front": wind_top, "roof, rear": back_top, "mirror": mirror,
        "rear window base": back_low, "door handle": handle, "front bumper": (front - 0.01, belt + 0.26),
        "rear bumper": (rear + 0.01, belt + 0.24),
    }  # fmt: skip
    return Drawing(parts, _arrays(keypoints))


def chair(rng: Generator) -> Drawing:
    """Chair from the front, turned to either side; left and right are those of the picture."""
    turned, height = rng.uniform(-0.75, 0.75), rng.uniform(0.25, 0.55)
    half, deep = rng.uniform(0.36, 0.48), rng.uniform(0.36, 0.46)
    back, leg = rng.uniform(0.65, 1.05), rng.uniform(0.6, 0.85)
    recline, splay, flare = rng.uniform(0, 0.25), rng.uniform(0, 0.14), rng.uniform(-0.1, 0.1)
    wood, cloth = random_material(rng), random_material(rng)

    def project(x: float, y: float, z: float) -> np.ndarray:  # y up, z away from the viewer
        c, s = np.cos(turned), np.sin(turned)
        return np.array([c * x + s * z, -y * np.cos(height) - (c * z - s * x) * np.sin(height) + 0.05])

    seat = {(i, k): project(i * half, 0, k * deep) for i in (-1, 1) for k in (-1, 1)}
    top = {i: project(i * half * (1 + flare), back, deep + recline) for i in (-1, 1)}
    wide, long = half + splay, deep + splay * 0.8
    ends = {(i, k): project(i * wide, -leg, k * long) for i in (-1, 1) for k in (-1, 1)}
    thick = rng.uniform(0.05, 0.1)
    stout = rng.uniform(0.055, 0.1)
    square = [seat[-1, -1], seat[1, -1], seat[1, 1], seat[-1, 1]]
    parts = [Part(limb([seat[i, 1], ends[i, 1]], stout, stout * 0.7), wood, 0.6) for i in (-1, 1)]
    parts += [Part(limb([seat[i, 1] + (0, 0.03), top[i]], stout, stout * 0.9), wood, 0.6) for i in (-1, 1)]
    style = rng.choice(["slats", "bars", "panel"])

    def between(i: int, t: float) -> np.ndarray:  # a point of a back post
        return seat[i, 1] * (1 - t) + top[i] * t

    if style == "panel":
        low = rng.uniform(0.1, 0.4)
        panel = [between(-1, low), between(-1, 1), between(1, 1), between(1, low)]
        parts.append(Part(subdivide(panel), cloth, 0.5))
    elif style == "slats":
        for t in np.linspace(0.35, 0.95, rng.integers(2, 5)):
            parts.append(Part(limb([between(-1, t), between(1, t)], stout * 1.3, stout * 1.3), wood, 0.5))
    else:
        for t in np.linspace(0.15, 0.85, rng.integers(3, 6)):
            below, above = seat[-1, 1] * (1 - t) + seat[1, 1] * t, top[-1] * (1 - t) + top[1] * t
            parts.append(Part(limb([below, above], stout * 0.6, stout * 0.6), wood, 0.5))
        parts.append(Part(limb([top[-1], top[1]], stout * 1.8, stout * 1.8), wood, 0.5))
    parts += [Part(limb([seat[i, -1], ends[i, -1]], stout, stout * 0.7), wood, 0.6) for i in (-1, 1)]
    drop = np.array([0, thick])
    for a, b in ((0, 1), (1, 2), (3, 0)):
        parts.append(Part(subdivide([square[a], square[b], square[b] + drop, square[a] + drop]), wood, 0.2))
    parts.append(Part(subdivide(square), cloth, 0.35))
    keypoints = {}
    for i, name in ((-1, "left"), (1, "right")):
        keypoints[f"back top, {name}"] = top[i]
        keypoints[f"seat front, {name}"], keypoints[f"seat rear, {name}"] = seat[i, -1], seat[i, 1]
        keypoints[f"front foot, {name}"], keypoints[f"rear foot, {name}"] = ends[i, -1], ends[i, 1]
    return Drawing(parts, _arrays(keypoints))


def _rounded(polygon: np.ndarray) -> np.ndarray:
    """The polygon with its corners cut by a quarter twice (Chaikin), which rounds them."""
    for _ in range(2):
        following = np.roll(polygon, -1, axis=0)
        polygon = np.stack([polygon * 0.85 + following * 0.15, polygon * 0.15 + following * 0.85], 1).reshape(-1, 2)
    return polygon


def _arrays(keypoints: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(point, float) for name, point in keypoints.items()}


# Names are those of PF-PASCAL and SPair-71k. Mirroring a bottle or a chair would exchange left and right.
CATEGORIES: dict[str, Callable[[Generator], Drawing]] = {
    "aeroplane": aeroplane,
    "bird": bird,
    "bottle": bottle,
    "car": car,
    "chair": chair,
}
MIRRORED = frozenset({"aeroplane", "bird", "car"})
