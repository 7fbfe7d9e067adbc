"""Folders of PNGs as arrays, and the textures of a training run cut as the training cut them."""

from pathlib import Path

import numpy
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm


class Problem(Exception):
    """What stops the tool, in one line for the user."""


def read_png(path):
    """uint8 [height, width, 3]; transparency is dropped, gray is repeated."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise Problem(f"{path} has more than 8 bits a channel: must be an 8-bit PNG")
            return numpy.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise Problem(f"cannot read {path}: {error}") from None


def png_paths(folder):
    """Every PNG below the folder, in the order of their paths."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Problem(f"{folder} is not a folder: must be a folder of PNGs")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png" and path.is_file())


def load(folder, at_least=1):
    """The folder's PNGs, all of one size: uint8 [count, height, width, 3]."""
    paths = png_paths(folder)
    if len(paths) < at_least:
        raise Problem(f"{folder} holds {len(paths)} PNGs: must hold at least {at_least}")
    images = []
    for path in tqdm(paths, desc=f"reading {folder}", leave=False, disable=None):
        image = read_png(path)
        if images and image.shape != images[0].shape:
            size, first = (f"{shape[1]}x{shape[0]}" for shape in (image.shape, images[0].shape))
            raise Problem(f"{path} is {size}, but {paths[0]} is {first}: all PNGs of a folder must have one size")
        images.append(image)
    return numpy.stack(images)


def scale_down(image, factor):
    """The mean of each factor x factor block, rounded half up, as examples/cpp/dataset.hpp does."""
    height, width = (side // factor for side in image.shape[:2])
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).astype(numpy.uint32)
    return ((blocks.sum((1, 3)) + factor * factor // 2) // (factor * factor)).astype(numpy.uint8)


def cut(image, size, rng):
    """A window at a random place of the image, which wraps around as a torus, mirrored half of the time."""
    top, left = (int(rng.integers(side)) for side in image.shape[:2])
    window = numpy.roll(image, (-top, -left), (0, 1))[:size, :size]
    return window[:, ::-1] if rng.integers(2) else window


def textures(folders, factor):
    """The training's textures before they are cut: a list of uint8 [height, width, 3] of different sizes."""
    paths = [path for folder in folders for path in png_paths(folder)]
    if not paths:
        raise Problem(f"no PNG in {', '.join(map(str, folders))}")
    return [scale_down(read_png(path), factor) for path in tqdm(paths, desc="reading textures", leave=False, disable=None)]


def prepare(whole, size, out, seed=0):
    """Writes one window of each texture into the folder out, as 0000.png and so on: the real images."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for old in png_paths(out):
        old.unlink()
    rng = numpy.random.default_rng(seed)
    for i, image in enumerate(whole):
        if min(image.shape[:2]) < size:
            raise Problem(f"texture {i} is {image.shape[1]}x{image.shape[0]}: must be at least {size} each way")
        Image.fromarray(numpy.ascontiguousarray(cut(image, size, rng))).save(out / f"{i:04}.png")


def sheet(rows, path, scale=3, margin=4):
    """Draws rows of pictures of one size, each pixel scale x scale, into one PNG."""
    height, width = rows[0][0].shape[:2]
    across, down = (margin + n * (side * scale + margin) for n, side in ((max(map(len, rows)), width), (len(rows), height)))
    canvas = numpy.full((down, across, 3), 24, numpy.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = margin + r * (height * scale + margin), margin + c * (width * scale + margin)
            canvas[top : top + height * scale, left : left + width * scale] = picture.repeat(scale, 0).repeat(scale, 1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path)
