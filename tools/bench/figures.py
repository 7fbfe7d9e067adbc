"""From times to figures: the least and the median, and ratios that are taken within one round."""

import numpy


def agreement(result, reference):
    """The root mean square of the difference over that of the reference; both flat, result as long or longer: images are
    independent, so the reference is of the first ones only. Infinite where the result is not finite or too short."""
    result, reference = (numpy.asarray(values, dtype=numpy.float64) for values in (result, reference))
    if len(result) < len(reference) or not len(reference) or not numpy.isfinite(result).all():
        return float("inf")
    size = numpy.sqrt(numpy.mean(reference**2))
    if size == 0:
        return float("inf")
    return float(numpy.sqrt(numpy.mean((result[: len(reference)] - reference) ** 2)) / size)


def summary(rounds):
    """rounds: for each round the seconds of its runs. The least and the median of all of them."""
    runs = [seconds for round_ in rounds for seconds in round_]
    return {"min": min(runs), "median": float(numpy.median(runs)), "runs": len(runs)}


def ratio(theirs, ours):
    """How many times as long they take: of the least times, and the median over the rounds of what each round says. The
    machine's pace drifts; within a round it is about the same for both."""
    paired = [numpy.median(a) / numpy.median(b) for a, b in zip(theirs, ours)]
    return {"min": summary(theirs)["min"] / summary(ours)["min"], "median": float(numpy.median(paired))}
