"""Draw scenes: flat shapes on a plain or grainy background, anti-aliased by drawing them larger."""

import math
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageDraw

from vpgtrans.demo.scenes import COLOURS, SIDE, Scene, Thing

_SCALE = 4
"""Shapes are drawn this many times larger, then averaged down."""

Points = list[tuple[float, float]]


def draw_scene(scene: Scene) -> Image.Image:
    """Return the RGB picture of a scene, ``SIDE`` pixels square; the same scene gives the same pixels."""
    mask_of = [(_mask(thing), COLOURS[thing.colour]) for thing in scene.things]
    pixels = np.empty((SIDE, SIDE, 3), dtype=np.float64)
    pixels[:] = scene.background
    if scene.noise:
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(scene.seed.encode())))
        pixels += generator.normal(0.0, scene.noise, size=(SIDE, SIDE, 1))
    for mask, colour in mask_of:
        cover = np.asarray(mask, dtype=np.float64)[:, :, None] / 255.0
        pixels = pixels * (1.0 - cover) + np.asarray(colour, dtype=np.float64) * cover
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), "RGB")


def _mask(thing: Thing) -> Image.Image:
    """Return how much of each pixel a thing covers, 0 to 255."""
    large = Image.new("L", (SIDE * _SCALE, SIDE * _SCALE), 0)
    x, y, radius = (value * _SCALE for value in (thing.x, thing.y, thing.radius))
    _DRAWERS[thing.shape](ImageDraw.Draw(large), x, y, radius)
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def _disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int = 255) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _circle(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    _disc(pen, x, y, radius)


def _ring(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    _disc(pen, x, y, radius)
    _disc(pen, x, y, 0.52 * radius, fill=0)


def _moon(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    _disc(pen, x, y, radius)
    _disc(pen, x + 0.55 * radius, y - 0.15 * radius, 0.85 * radius, fill=0)


def _heart(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    steps = (2 * math.pi * step / 48 for step in range(48))
    curve = [
        (
            16 * math.sin(turn) ** 3,
            -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)),
        )
        for turn in steps
    ]
    _polygon(pen, x, y - 0.1 * radius, radius / 16, curve)


def _outline(points: Iterable[tuple[float, float]]) -> Callable[..., None]:
    """Make a drawer of a polygon given in half widths around the centre, y downwards."""
    corners = list(points)

    def drawer(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
        _polygon(pen, x, y, radius, corners)

    return drawer


def _polygon(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, corners: Points) -> None:
    pen.polygon([(x + radius * right, y + radius * down) for right, down in corners], fill=255)


def _star_corners() -> Points:
    radii = (1.1, 0.45)
    angles = [math.pi * corner / 5 - math.pi / 2 for corner in range(10)]
    return [
        (radii[corner % 2] * math.cos(angle), radii[corner % 2] * math.sin(angle))
        for corner, angle in enumerate(angles)
    ]


_CROSS = [
    (-0.33, -1.0), (0.33, -1.0), (0.33, -0.33), (1.0, -0.33), (1.0, 0.33), (0.33, 0.33),
    (0.33, 1.0), (-0.33, 1.0), (-0.33, 0.33), (-1.0, 0.33), (-1.0, -0.33), (-0.33, -0.33),
]  # fmt: skip
_ARROW = [(1.1, 0.0), (0.1, -0.9), (0.1, -0.35), (-1.0, -0.35), (-1.0, 0.35), (0.1, 0.35), (0.1, 0.9)]

_DRAWERS: dict[str, Callable[..., None]] = {
    "circle": _circle,
    "ring": _ring,
    "moon": _moon,
    "heart": _heart,
    "square": _outline([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": _outline([(0.0, -1.0), (1.05, 0.85), (-1.05, 0.85)]),
    "diamond": _outline([(0.0, -1.1), (0.72, 0.0), (0.0, 1.1), (-0.72, 0.0)]),
    "star": _outline(_star_corners()),
    "cross": _outline(_CROSS),
    "arrow": _outline(_ARROW),
}
