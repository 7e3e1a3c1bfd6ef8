"""Silhouettes of the four aerial classes as polygons, for the generated scenes.

A silhouette is a list of parts (points (n, 2) float in a frame about two units wide, nose towards +x, y down; shade in
[0, 1] that multiplies the object's colour; opacity in 0-255), drawn in order. Shape, pose and view vary with the
generator that is passed in.
"""

import math

import numpy as np

CLASSES = ("bird", "helicopter", "drone", "plane")


def _polygon(points: str) -> np.ndarray:
    """The corners (n, 2) of "x,y x,y", as SVG writes them."""
    return np.array([pair.split(",") for pair in points.split()], dtype=float)


def _ellipse(cx: float, cy: float, rx: float, ry: float, points: int = 12) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, points, endpoint=False)
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _mirrored(points: np.ndarray) -> np.ndarray:
    return points * (1, -1)


def _turn(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


def _bird(rng) -> tuple[list, np.ndarray]:
    sweep, span, chord = rng.uniform(-0.1, 0.35), rng.uniform(0.8, 1.1), rng.uniform(0.16, 0.26)
    lift = rng.uniform(-0.35, 0.5)  # raised wings, seen obliquely, lean to one side
    x = np.array([0.26, 0.30, 0.08 - sweep, -0.22 - sweep, -0.16 - sweep, 0.02 - chord, -0.22])
    y = np.array([0.05, 0.42 * span, 0.85 * span, span, 0.72 * span, 0.42 * span, 0.06])
    wing = np.stack([x - lift * y, y], axis=1)
    parts = [
        (wing, 0.8, 255),
        (_mirrored(wing), 0.92, 255),
        (_polygon("-0.28,0.07 -0.74,0.2 -0.64,0 -0.74,-0.2 -0.28,-0.07"), 0.85, 255),
        (_ellipse(0, 0, 0.42, 0.13), 1, 255),
        (_ellipse(0.40, 0, 0.14, 0.10), 1, 255),
        (_polygon("0.50,0.05 0.68,0 0.50,-0.05"), 0.5, 255),
    ]
    return parts, _turn(rng.uniform(0, 2 * math.pi)) @ np.diag([1, rng.uniform(0.5, 1.0)])


def _helicopter(rng) -> tuple[list, np.ndarray]:
    rotor, mast = rng.uniform(0.8, 1.1), rng.uniform(0.1, 0.3)
    skid = _polygon("-0.2,0.42 0.55,0.42 0.63,0.35 0.66,0.39 0.57,0.48 -0.2,0.48")
    parts = [
        (_ellipse(-1.04, -0.1, 0.18, 0.18), 0.8, 150),
        (_polygon("-0.1,-0.12 -1.02,-0.07 -1.02,0.02 -0.1,0.16"), 0.9, 255),
        (_polygon("-0.86,-0.05 -1.14,-0.36 -1.02,-0.36 -0.9,0.02"), 0.8, 255),
        (_polygon("0.1,-0.2 0.1,-0.4 0.2,-0.4 0.2,-0.2"), 0.6, 255),
        (_ellipse(0.18, 0.05, 0.46, 0.28, 16), 1, 255),
        (_polygon("0.32,-0.12 0.5,-0.1 0.62,0.06 0.36,0.06"), 0.35, 255),
        (skid, 0.5, 255),
        (_polygon("0,0.28 0.06,0.28 0.03,0.44 -0.03,0.44"), 0.5, 255),
        (_polygon("0.34,0.26 0.4,0.26 0.44,0.44 0.38,0.44"), 0.5, 255),
        (_ellipse(0.15, -0.4, rotor, rng.uniform(0.045, 0.09), 20), 0.55, 225),
    ]
    facing = np.diag([rng.choice([-1, 1]) * rng.uniform(0.75, 1.0), 1 - mast * 0.3])
    return parts, _turn(rng.uniform(-0.45, 0.45)) @ facing


def _drone(rng) -> tuple[list, np.ndarray]:
    radius, parts = rng.uniform(0.26, 0.36), []
    for angle in np.deg2rad([45, 135, 225, 315]):
        hub = 0.78 * np.array([math.cos(angle), math.sin(angle)])
        side = 0.11 * np.array([-hub[1], hub[0]])
        parts.append((np.stack([side, hub + side * 0.7, hub - side * 0.7, -side]), 0.8, 255))
        parts.append((_ellipse(*hub, radius, radius, 16), 0.75, 165))
        parts.append((_ellipse(*hub, 0.09, 0.09, 8), 0.4, 255))
    body = "-0.36,-0.2 -0.2,-0.32 0.2,-0.32 0.36,-0.2 0.36,0.2 0.2,0.32 -0.2,0.32 -0.36,0.2"
    parts.append((_polygon(body), 1, 255))
    parts.append((_ellipse(0.14, 0, 0.13, 0.13, 10), 0.35, 255))
    view = np.diag([1, rng.uniform(0.4, 0.9)]) @ _turn(rng.uniform(0, 2 * math.pi))
    return parts, _turn(rng.uniform(-0.35, 0.35)) @ view


def _plane(rng) -> tuple[list, np.ndarray]:
    sweep, span = rng.uniform(0.2, 0.6), rng.uniform(0.8, 1.05)
    tip, fin = -sweep * 0.9, 0.1 * sweep
    wing = np.array([(0.3, 0.08), (0.26 + tip, span), (0.08 + tip, span), (-0.14, 0.08)])
    tail = np.array([(-0.66, 0.05), (-0.9 - fin, 0.38), (-1.03 - fin, 0.38), (-0.92, 0.03)])
    engine = _ellipse(0.22 - sweep * 0.3, 0.38, 0.14, 0.055, 8)
    half = _polygon("0.93,0.06 0.82,0.1 0.62,0.115 -0.6,0.105 -0.98,0.03")
    body = np.concatenate([[(0.98, 0)], half, _mirrored(half)[::-1]])
    parts = [
        (part, shade, 255)
        for points, shade in ((wing, 0.86), (tail, 0.84), (engine, 0.55))
        for part in (points, _mirrored(points))
    ]
    parts += [
        (body, 1, 255),
        (_polygon("-0.6,0.025 -1.06,0.03 -1.06,-0.03 -0.6,-0.025"), 0.6, 255),
        (_polygon("0.78,0.07 0.86,0.05 0.86,-0.05 0.78,-0.07"), 0.35, 255),
    ]
    return parts, _turn(rng.uniform(0, 2 * math.pi)) @ np.diag([1, rng.uniform(0.45, 1.0)])


_MAKERS = (_bird, _helicopter, _drone, _plane)


def silhouette(
    label: int, size: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, float, int]]:
    """A posed object of class `CLASSES[label]`: parts whose points start at (0, 0) and whose longer side is `size`."""
    parts, pose = _MAKERS[label](rng)
    posed = [points @ pose.T for points, _, _ in parts]
    everything = np.concatenate(posed)
    low, high = everything.min(axis=0), everything.max(axis=0)
    scale = size / (high - low).max()
    return [
        ((points - low) * scale, shade, opacity)
        for points, (_, shade, opacity) in zip(posed, parts, strict=True)
    ]
