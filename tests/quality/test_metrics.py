"""The statistics against known answers: formulas for Gaussians, sums over pairs, pictures worked out by hand."""

import itertools
import sys
import unittest
from pathlib import Path

import numpy

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/quality"))
import metrics  # noqa: E402


def analytic_mmd2(m, d):
    """MMD^2 of N(0, I) and N(m, I) in d dimensions under (x.y / d + 1)^3, from the moments of x.y."""

    def mean(a, b):
        """E (x.y / d + 1)^3 for x from N(a, I) and y from N(b, I)."""
        c, aa, bb = a @ b, a @ a, b @ b
        second = c**2 + aa + bb + d
        third = c**3 + 3 * c * bb + 3 * (c * (aa + d) + 2 * c)
        return 1 + 3 * c / d + 3 * second / d**2 + third / d**3

    zero = numpy.zeros(d)
    return mean(zero, zero) + mean(m, m) - 2 * mean(zero, m)


def mmd2(x, y):
    return metrics.kid(x, y, subsets=0)[0]


class Kid(unittest.TestCase):
    def setUp(self):
        self.rng = numpy.random.default_rng(1)

    def test_constants(self):
        self.assertAlmostEqual(mmd2(numpy.zeros((3, 1)), numpy.ones((5, 1))), 1 + 8 - 2)

    def test_sum_over_pairs(self):
        x, y = self.rng.normal(size=(5, 3)), self.rng.normal(size=(4, 3)) + 1

        def k(a, b):
            return (sum(p * q for p, q in zip(a, b)) / 3 + 1) ** 3

        within = [numpy.mean([k(a, b) for a, b in itertools.permutations(v, 2)]) for v in (x, y)]
        wanted = sum(within) - 2 * numpy.mean([k(a, b) for a in x for b in y])
        self.assertAlmostEqual(mmd2(x, y), wanted, places=12)

    def test_the_same_distribution(self):
        value, error = metrics.kid(self.rng.normal(size=(1000, 6)), self.rng.normal(size=(1000, 6)))
        self.assertLess(abs(value), 4 * error)
        self.assertLess(error, 0.02)  # so that the line above can fail

    def test_shifted_gaussians(self):
        m = numpy.array([0.9, -0.5, 0.3, 0.0])
        wanted = analytic_mmd2(m, 4)
        self.assertGreater(wanted, 0.5)
        value, error = metrics.kid(self.rng.normal(size=(2000, 4)), self.rng.normal(size=(2000, 4)) + m)
        self.assertLess(abs(value - wanted), 4 * error)
        self.assertLess(error, wanted / 5)

    def test_unbiased_where_images_are_few_and_its_error_right(self):
        m = numpy.array([1.0, 0.5])
        found = [metrics.kid(self.rng.normal(size=(12, 2)), self.rng.normal(size=(12, 2)) + m) for _ in range(600)]
        values, errors = numpy.array(found).T
        spread = values.std(ddof=1)
        self.assertLess(abs(values.mean() - analytic_mmd2(m, 2)), 4 * spread / 600**0.5)
        # The median: the estimates' distribution has a long tail.
        self.assertTrue(0.4 < numpy.median(errors) / spread < 2, numpy.median(errors) / spread)


class Frechet(unittest.TestCase):
    def setUp(self):
        self.rng = numpy.random.default_rng(2)

    def exactly(self, count, mean, covariance):
        """A sample whose mean and covariance are these, to rounding."""
        z = self.rng.normal(size=(count, len(mean)))
        z -= z.mean(0)
        z @= numpy.linalg.inv(numpy.linalg.cholesky(numpy.cov(z.T))).T
        return z @ numpy.linalg.cholesky(covariance).T + mean

    def test_diagonal(self):
        a, b = numpy.array([4.0, 9.0, 1.0]), numpy.array([1.0, 16.0, 2.25])
        x = self.exactly(50, [0, 0, 0], numpy.diag(a))
        y = self.exactly(70, [1, -2, 0.5], numpy.diag(b))
        wanted = 1 + 4 + 0.25 + ((a**0.5 - b**0.5) ** 2).sum()
        self.assertAlmostEqual(metrics.frechet(x, y), wanted, places=9)

    def test_covariances_that_do_not_commute(self):
        s, t = numpy.array([[2.0, 0.9], [0.9, 1.0]]), numpy.array([[1.0, -0.7], [-0.7, 3.0]])
        # The eigenvalues of a product of two positive 2x2 matrices: tr (S T)^(1/2) = sqrt(tr S T + 2 sqrt(det S T)).
        root = numpy.sqrt(numpy.trace(s @ t) + 2 * numpy.sqrt(numpy.linalg.det(s @ t)))
        wanted = numpy.trace(s) + numpy.trace(t) - 2 * root
        found = metrics.frechet(self.exactly(30, [0, 0], s), self.exactly(40, [0, 0], t))
        self.assertAlmostEqual(found, wanted, places=9)

    def test_fewer_images_than_dimensions(self):
        x = self.rng.normal(size=(8, 40))
        self.assertAlmostEqual(metrics.frechet(x, x), 0, places=9)
        self.assertAlmostEqual(metrics.frechet(x, x + 0.5), 40 * 0.25, places=9)


class Floor(unittest.TestCase):
    def test_splits_are_disjoint(self):
        seen = set()
        for other, half in metrics.splits(21, 7, number=50):
            self.assertEqual((len(other), len(half)), (7, 10))
            self.assertFalse(set(other) & set(half))
            seen |= set(other) | set(half)
        self.assertEqual(seen, set(range(21)))

    def test_samples_of_the_same_distribution_score_as_the_floor(self):
        rng = numpy.random.default_rng(3)
        samples, real = rng.normal(size=(60, 10)), rng.normal(size=(400, 10))
        same, floor = metrics.against_halves(samples, real, metrics.frechet)
        self.assertGreater(floor[0], 0.2)  # which is its bias
        self.assertLess(abs(same[0] - floor[0]), 0.5 * floor[0])
        worse, again = metrics.against_halves(samples + 2, real, metrics.frechet)
        self.assertEqual(again, floor)
        self.assertGreater(worse[0], 10 * floor[0])


class Nearest(unittest.TestCase):
    def test_distances(self):
        x, y = numpy.array([[0.0, 0.0], [5.0, 5.0]]), numpy.array([[3.0, 4.0], [5.0, 6.0], [0.0, 9.0]])
        distances, which = metrics.nearest(x, y)
        numpy.testing.assert_allclose(distances, [5, 1])
        self.assertEqual(list(which), [0, 1])

    def test_none_is_its_own_neighbour(self):
        distances, which = metrics.nearest(*[numpy.array([[0.0], [1.0], [4.0]])] * 2, others=True)
        numpy.testing.assert_allclose(distances, [1, 1, 3])
        self.assertEqual(list(which), [1, 0, 1])

    def test_copies_are_told(self):
        real = numpy.arange(1.0, 101)
        self.assertEqual(metrics.closeness(numpy.array([0.5, 0.6, 80.0, 90.0]), real), (40.3, 50.5, 0.5))


class Windows(unittest.TestCase):
    def setUp(self):
        rng = numpy.random.default_rng(4)
        shapes = [(8, 8), (8, 16), (16, 8), (11, 9), (8, 8)]
        self.textures = [rng.integers(0, 256, (*shape, 3), dtype=numpy.uint8) for shape in shapes]
        self.windows = metrics.Windows(self.textures, 8)
        self.noise = rng.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)

    def cut(self, number, top, left):
        return numpy.roll(self.textures[number], (-top, -left), (0, 1))[:8, :8]

    def test_finds_what_was_cut_out(self):
        for number, top, left, mirrored in [(0, 0, 0, False), (0, 7, 3, True), (1, 2, 13, False), (2, 15, 1, True), (3, 10, 8, False)]:
            window = self.cut(number, top, left)
            window = window[:, ::-1] if mirrored else window
            distance, found, shown = self.windows.nearest(window)
            self.assertEqual((distance, found), (0, number))
            numpy.testing.assert_array_equal(shown, window)

    def brute(self, picture, leave_out=None):
        best = numpy.inf
        for number, texture in enumerate(self.textures):
            for top, left in itertools.product(*map(range, texture.shape[:2])):
                window = self.cut(number, top, left).astype(float)
                for shown in (window, window[:, ::-1]):
                    if number != leave_out:
                        best = min(best, ((shown - picture) ** 2).mean() ** 0.5)
        return best

    def test_the_nearest_of_all(self):
        self.assertAlmostEqual(self.windows.nearest(self.noise)[0], self.brute(self.noise), places=6)
        window = self.cut(1, 2, 3)
        distance, number, _ = self.windows.nearest(window, leave_out=1)
        self.assertNotEqual(number, 1)
        self.assertAlmostEqual(distance, self.brute(window, leave_out=1), places=6)


class Seams(unittest.TestCase):
    def picture(self, row):
        return numpy.broadcast_to(numpy.array(row, numpy.uint8)[None, None, :, None], (1, 6, len(row), 3))

    def test_known_pictures(self):
        self.assertEqual(metrics.seam_ratio(self.picture([0, 1, 2, 3, 4, 5, 6, 7])), 7)  # a ramp
        self.assertEqual(metrics.seam_ratio(self.picture([0, 1, 2, 1])), 1)  # a wave that goes on
        self.assertEqual(metrics.seam_ratio(self.picture([9, 9, 9])), 1)  # plain
        self.assertEqual(metrics.seam_ratio(self.picture([0, 255, 255, 0])), 0)

    def test_rows_as_columns(self):
        ramp = self.picture([0, 2, 4, 6, 8, 10]).transpose(0, 2, 1, 3)
        self.assertEqual(metrics.seam_ratio(ramp), 5)


if __name__ == "__main__":
    unittest.main()
