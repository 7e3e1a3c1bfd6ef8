"""Silhouettes of the four aerial classes as polygons, for the generated scenes.

A silhouette is a list of parts (points (n, 2) float in a frame about two units wide, nose towards +x, y down; shade in
[0, 1] that multiplies the object's colour; opacity in 0-255), drawn in order. Shape, pose and view vary with the
generator that is passed in.
"""

import math

import numpy as np

CLASSES = ("bird", "helicopter", "drone", "plane")


def _polygon(*coordinates: float) -> np.ndarray:
    return np.array(coordinates, dtype=float).reshape(-1, 2)


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
    wing = _polygon(.26, .05, .30, .42 * span, .08 - sweep, .85 * span, -.22 - sweep, span,
                    -.16 - sweep, .72 * span, .02 - chord, .42 * span, -.22, .06)
    wings = [wing, _mirrored(wing)]
    for points in wings:
        points[:, 0] -= lift * np.abs(points[:, 1])
    tail = _polygon(-.28, .07, -.74, .2, -.64, 0, -.74, -.2, -.28, -.07)
    parts = [(wings[0], .8, 255), (wings[1], .92, 255), (tail, .85, 255), (_ellipse(0, 0, .42, .13), 1, 255),
             (_ellipse(.40, 0, .14, .10), 1, 255), (_polygon(.50, .05, .68, 0, .50, -.05), .5, 255)]
    return parts, _turn(rng.uniform(0, 2 * math.pi)) @ np.diag([1, rng.uniform(0.5, 1.0)])


def _helicopter(rng) -> tuple[list, np.ndarray]:
    rotor, mast = rng.uniform(0.8, 1.1), rng.uniform(0.1, 0.3)
    parts = [(_ellipse(-1.04, -.1, .18, .18), .8, 150),
             (_polygon(-.1, -.12, -1.02, -.07, -1.02, .02, -.1, .16), .9, 255),
             (_polygon(-.86, -.05, -1.14, -.36, -1.02, -.36, -.9, .02), .8, 255),
             (_polygon(.1, -.2, .1, -.4, .2, -.4, .2, -.2), .6, 255), (_ellipse(.18, .05, .46, .28, 16), 1, 255),
             (_polygon(.32, -.12, .5, -.1, .62, .06, .36, .06), .35, 255),
             (_polygon(-.2, .42, .55, .42, .63, .35, .66, .39, .57, .48, -.2, .48), .5, 255),
             (_polygon(0, .28, .06, .28, .03, .44, -.03, .44), .5, 255),
             (_polygon(.34, .26, .4, .26, .44, .44, .38, .44), .5, 255),
             (_ellipse(.15, -.4, rotor, rng.uniform(.045, .09), 20), .55, 225)]
    facing = np.diag([rng.choice([-1, 1]) * rng.uniform(0.75, 1.0), 1 - mast * 0.3])
    return parts, _turn(rng.uniform(-0.45, 0.45)) @ facing


def _drone(rng) -> tuple[list, np.ndarray]:
    radius, parts = rng.uniform(0.26, 0.36), []
    for angle in np.deg2rad([45, 135, 225, 315]):
        hub = 0.78 * np.array([math.cos(angle), math.sin(angle)])
        side = 0.11 * np.array([-hub[1], hub[0]])
        parts.append((np.stack([side, hub + side * 0.7, hub - side * 0.7, -side]), .8, 255))
        parts.append((_ellipse(*hub, radius, radius, 16), .75, 165))
        parts.append((_ellipse(*hub, .09, .09, 8), .4, 255))
    parts.append((_polygon(-.36, -.2, -.2, -.32, .2, -.32, .36, -.2, .36, .2, .2, .32, -.2, .32, -.36, .2), 1, 255))
    parts.append((_ellipse(.14, 0, .13, .13, 10), .35, 255))
    view = np.diag([1, rng.uniform(0.4, 0.9)]) @ _turn(rng.uniform(0, 2 * math.pi))
    return parts, _turn(rng.uniform(-0.35, 0.35)) @ view


def _plane(rng) -> tuple[list, np.ndarray]:
    sweep, span = rng.uniform(0.2, 0.6), rng.uniform(0.8, 1.05)
    wing = _polygon(.3, .08, .26 - sweep * .9, span, .08 - sweep * .9, span, -.14, .08)
    tail = _polygon(-.66, .05, -.9 - .1 * sweep, .38, -1.03 - .1 * sweep, .38, -.92, .03)
    engine = _ellipse(.22 - sweep * .3, .38, .14, .055, 8)
    body = _polygon(.98, 0, .93, .06, .82, .1, .62, .115, -.6, .105, -.98, .03, -.98, -.03, -.6, -.105, .62, -.115,
                    .82, -.1, .93, -.06)
    parts = [(part, shade, 255) for points, shade in ((wing, .86), (tail, .84), (engine, .55))
             for part in (points, _mirrored(points))]
    parts += [(body, 1, 255), (_polygon(-.6, .025, -1.06, .03, -1.06, -.03, -.6, -.025), .6, 255),
              (_polygon(.78, .07, .86, .05, .86, -.05, .78, -.07), .35, 255)]
    return parts, _turn(rng.uniform(0, 2 * math.pi)) @ np.diag([1, rng.uniform(0.45, 1.0)])


_MAKERS = (_bird, _helicopter, _drone, _plane)


def silhouette(label: int, size: float, rng: np.random.Generator) -> list[tuple[np.ndarray, float, int]]:
    """A posed object of class `CLASSES[label]`: parts whose points start at (0, 0) and whose longer side is `size`."""
    parts, pose = _MAKERS[label](rng)
    posed = [points @ pose.T for points, _, _ in parts]
    everything = np.concatenate(posed)
    low, high = everything.min(axis=0), everything.max(axis=0)
    scale = size / (high - low).max()
    return [((points - low) * scale, shade, opacity) for points, (_, shade, opacity) in zip(posed, parts, strict=True)]
