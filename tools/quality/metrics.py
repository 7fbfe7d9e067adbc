"""The statistics, in numpy alone: KID, a Frechet distance, the nearest neighbours and the seam ratio.

Features are float arrays [images, dimensions], pictures uint8 [images, height, width, 3].
"""

import numpy
from tqdm import tqdm


# --- KID: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", arXiv 1801.01401 ---------------------------


def kernel(x, y):
    """(x.y / d + 1)^3 for each pair: [len(x), len(y)]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd2(kxx, kyy, kxy):
    """The unbiased estimate of the squared maximum mean discrepancy: pairs of an image with itself are left out.

    Gretton et al., "A kernel two-sample test", JMLR 2012, equation 3. It may be below 0.
    """
    n, m = kxy.shape
    within_x = (kxx.sum() - numpy.trace(kxx)) / (n * (n - 1))
    within_y = (kyy.sum() - numpy.trace(kyy)) / (m * (m - 1))
    return within_x + within_y - 2 * kxy.mean()


def kid(x, y, subsets=100, seed=0):
    """(KID of all images, its standard error; None where subsets is 0).

    The error is the standard deviation over random subsets with half of the images of each side. Halves drawn without
    replacement vary about the whole as much as the whole does about the truth (the delete-d jackknife of Shao and Wu,
    Annals of Statistics 1989, whose factor is 1 where d is a half); where both distributions are nearly the same it is
    too large rather than too small.
    """
    x, y = x.astype(numpy.float64), y.astype(numpy.float64)
    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    rng = numpy.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        i = rng.choice(len(x), len(x) // 2, replace=False)
        j = rng.choice(len(y), len(y) // 2, replace=False)
        found.append(mmd2(kxx[numpy.ix_(i, i)], kyy[numpy.ix_(j, j)], kxy[numpy.ix_(i, j)]))
    return mmd2(kxx, kyy, kxy), numpy.std(found, ddof=1) if subsets else None


# --- Frechet distance ------------------------------------------------------------------------------------------------


def frechet(x, y):
    """The squared 2-Wasserstein distance of the Gaussians with the two sets' means and covariances.

    |m - n|^2 + tr S + tr T - 2 tr (S T)^(1/2) (Dowson and Landau 1982). With S = A A' and T = B B' the last trace is the
    sum of the singular values of A' B, which also holds where there are fewer images than dimensions and S and T are
    singular; QR factors have the same ones and are no larger than the dimensions. The estimate is biased, upwards, and the more so the fewer images: compare at equal counts only.
    """
    x, y = x.astype(numpy.float64), y.astype(numpy.float64)
    a, b = ((v - v.mean(0)) / numpy.sqrt(len(v) - 1) for v in (x, y))
    ra, rb = numpy.linalg.qr(a, "r"), numpy.linalg.qr(b, "r")
    cross = numpy.linalg.svd(ra @ rb.T, compute_uv=False).sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross


# --- The floor: real against real ------------------------------------------------------------------------------------


def splits(real, count, number=20, seed=0):
    """Yields pairs of disjoint parts of the real images' numbers: (count of them, half of all)."""
    rng = numpy.random.default_rng(seed)
    for _ in range(number):
        order = rng.permutation(real)
        yield order[real // 2 :][:count], order[: real // 2]


def against_halves(samples, real, statistic, number=20, seed=0):
    """((mean, deviation) of the samples, (mean, deviation) of the floor), over random splits of the real images.

    Both are a statistic of as many images against one half of the real images; for the floor they are of the other half.
    """
    count = min(len(samples), len(real) // 2)
    rng = numpy.random.default_rng(seed + 1)
    found, floor = [], []
    for other, half in splits(len(real), count, number, seed):
        some = rng.permutation(len(samples))[:count]
        found.append(statistic(samples[some], real[half]))
        floor.append(statistic(real[other], real[half]))
    return tuple((numpy.mean(v), numpy.std(v, ddof=1)) for v in (found, floor))


# --- Nearest neighbours: does the model repeat what it was shown? ----------------------------------------------------


def nearest(x, y, others=False):
    """For each row of x the Euclidean distance to the nearest row of y and its number: two arrays [len(x)].

    others: x and y are the same images, and none is its own neighbour.
    """
    x, y = x.astype(numpy.float64), y.astype(numpy.float64)
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    if others:
        numpy.fill_diagonal(squares, numpy.inf)
    which = squares.argmin(1)
    return numpy.sqrt(numpy.maximum(squares[numpy.arange(len(x)), which], 0)), which


class Windows:
    """All windows of the training's textures: at any place, across the edges, and mirrored.

    That is what a training with `--augment wrap,flip` shows, so a repeated texture is found whatever its shift. The search is
    a correlation by FFT in 32 bits; the distance of what it finds is exact.
    """

    def __init__(self, textures, size):
        self.size = size
        self.textures = textures
        self.groups = []  # textures of one height and width: (their numbers, their spectra, their windows' squares)
        shapes = {}
        for i, texture in enumerate(textures):
            shapes.setdefault(texture.shape[:2], []).append(i)
        for shape, numbers in sorted(shapes.items()):
            # About 0, so that squares and products are small and the rounding with them.
            pictures = numpy.stack([textures[i] for i in numbers]).transpose(0, 3, 1, 2).astype(numpy.float32) - 128
            ones = numpy.fft.rfft2(numpy.ones((size, size), numpy.float32), shape).conj()
            squares = numpy.fft.irfft2(numpy.fft.rfft2((pictures**2).sum(1)) * ones, shape)
            self.groups.append((numbers, numpy.fft.rfft2(pictures), squares))

    def nearest(self, picture, leave_out=None):
        """(root mean square difference in 0..255, texture's number, the window) of the nearest window to a picture."""
        best = (numpy.inf,)
        for mirrored in (False, True):
            wanted = (picture[:, ::-1] if mirrored else picture).transpose(2, 0, 1).astype(numpy.float32) - 128
            for numbers, spectra, squares in self.groups:
                shape = squares.shape[1:]
                cross = numpy.fft.irfft2((spectra * numpy.fft.rfft2(wanted, shape).conj()).sum(1), shape)
                found = squares - 2 * cross  # and the picture's own square, which is the same for all
                if leave_out in numbers:
                    found[numbers.index(leave_out)] = numpy.inf
                i, top, left = numpy.unravel_index(found.argmin(), found.shape)
                best = min(best, (found[i, top, left], numbers[i], int(top), int(left), mirrored))
        _, number, top, left, mirrored = best
        window = numpy.roll(self.textures[number], (-top, -left), (0, 1))[: self.size, : self.size]
        window = window[:, ::-1] if mirrored else window
        return numpy.sqrt(((window.astype(numpy.float64) - picture) ** 2).mean()), number, window

    def nearest_of(self, pictures, own=False, description="nearest windows"):
        """The same for each picture. own: picture i is a window of texture i, which does not count as its neighbour."""
        progress = tqdm(pictures, desc=description, leave=False, disable=None)
        return [self.nearest(picture, i if own else None) for i, picture in enumerate(progress)]


def closeness(samples, real):
    """(median of the samples' distances, median of the real ones', share of samples below the real ones' 5 % quantile).

    The share of copies-like samples is 0.05 where samples lie as far from the real images as those do from each other.
    """
    return numpy.median(samples), numpy.median(real), float((samples < numpy.quantile(real, 0.05)).mean())


# --- Seams -----------------------------------------------------------------------------------------------------------


def seam_ratio(pictures):
    """How visible the border is where a picture is tiled: 1 is as inside, more is a visible seam.

    The mean absolute difference across the wrapped edge, of rows and columns, over that between neighbours inside; of all
    pictures together, so that a plain one does not divide by 0.
    """
    p = pictures.astype(numpy.float64)
    across = numpy.abs(p[:, 0] - p[:, -1]).mean() + numpy.abs(p[:, :, 0] - p[:, :, -1]).mean()
    inside = numpy.abs(numpy.diff(p, axis=1)).mean() + numpy.abs(numpy.diff(p, axis=2)).mean()
    return across / inside if inside else (numpy.inf if across else 1.0)
