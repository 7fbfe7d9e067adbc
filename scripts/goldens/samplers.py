"""Sampler loops with handed-in noise, from diffusers and from the papers.

reference() is the papers' formulas in f64, and is what the files hold. run_diffusers() is diffusers' scheduler of the
same options, in f64 too: its tables are replaced, since what f32 does to them would hide any other difference. Where
diffusers is right, the two are held against each other before a file is written. Where it is not, the case says why,
and the script makes sure that it still differs.

The network of a loop is an exact denoiser, which both sides can compute, plus a wobble: without an error in it no
estimate would ever leave the range of images. In the group sampler_unet it is a real UNet2DModel.
"""

import math
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm, scheduling_euler_ancestral_discrete

from . import group
from .formulas import IMAGES, MODES, NOISE, tensor
from .schedules import make_tables, schedule
from .unets import make_unet

LINEAR = schedule("linear", 1000)
COSINE = schedule("cosine", 1000, 1e-4, 0.999)
COSINE_200 = schedule("cosine", 200, 1e-4, 0.999)
ZERO_SNR = schedule("linear", 1000, zero_snr=True)

SHAPE = (2, 3, 3, 3)
# DPM-Solver++'s lambda_min_clipped: samplers that step in lambda visit no timestep below.
LAMBDA_MIN = -5.1
RHO = 7.0
# diffusers and the formulas agree to this part of the largest value, both in f64.
AGREEMENT = 1e-9
# Some of diffusers' schedulers round x to f32 at every step, Euler's in a frame where it is up to 157.
ROUNDED_AGREEMENT = {"dpmpp_2m": 2e-6, "dpmpp_2m_sde": 2e-6, "euler": 1e-5}


# The cases


def options(method, steps, spacing, **changes):
    """The options of a case: the fields of src/sampler's SamplerParams, the schedule, and how diffusers stands.

    peer is "right" where diffusers does the same, else a sentence that says what it does instead, or why it cannot.
    """
    return {
        "method": method,
        "steps": steps,
        "spacing": spacing,
        "schedule": LINEAR,
        "prediction": "epsilon",
        "eta": 0.0,
        "variance": "fixed_small",
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "use_clipped_model_output": False,
        "dynamic_thresholding": None,
        "steps_offset": 0,
        "peer": "right",
    } | changes


WRONG_STRIDE = "wrong: diffusers takes t - T // n for the previous timestep, which is not the next of its list"
WRONG_LENGTH = "wrong: numpy's arange gives one timestep too many, -1, which indexes the last of the table"
WRONG_LAST_NOISE = "wrong: diffusers adds fixed_large noise at the last step unless that is timestep 0"
WRONG_SINGLE = "wrong: a linspace of one number is its start, timestep 0, where there is no noise"
WRONG_DOUBLE = "wrong: n + 1 numbers over T = n timesteps are rounded to a list that visits one of them twice"
NO_CLIP = "none: diffusers' scheduler has no clip_sample"
NO_KARRAS = "none: diffusers' scheduler has no Karras spacing"
NO_SCHEDULE = "none: diffusers' scheduler has no way to leave out the timesteps below lambda -5.1"
LAST_STEP_ZERO_SNR = "none: diffusers ends at abar 2^-24 instead of 0"


def ddpm_cases():
    def case(steps, spacing, **changes):
        return options("ddpm", steps, spacing, **changes)

    clip = {"clip_sample": True}
    large = {"variance": "fixed_large"}
    yield "all_small_clip", case(1000, "leading", **clip)
    yield "all_small", case(1000, "leading")
    yield "all_large_clip", case(1000, "leading", **clip, **large)
    yield "all_large", case(1000, "leading", **large)
    yield "leading_50_small_clip", case(50, "leading", **clip)
    yield "leading_30_large_clip", case(30, "leading", **clip, **large)
    yield "trailing_50_small_clip", case(50, "trailing", **clip)
    yield "trailing_30_small", case(30, "trailing")
    yield "trailing_30_large_clip", case(30, "trailing", **clip, **large, peer=WRONG_LAST_NOISE)
    yield "linspace_7_small_clip", case(7, "linspace", **clip)
    yield "linspace_1", case(1, "linspace", peer=WRONG_SINGLE)
    yield "trailing_1", case(1, "trailing")
    yield "sample_20", case(20, "leading", prediction="sample")
    yield "velocity_20", case(20, "leading", prediction="v_prediction", **large)
    yield "clip_range_20", case(20, "leading", **clip, clip_sample_range=0.6)
    yield "threshold_20", case(20, "leading", dynamic_thresholding=0.9)
    yield "offset_20", case(20, "leading", steps_offset=1, **clip)
    yield "cosine_200_all", case(200, "leading", schedule=COSINE_200, **clip)
    yield "zero_snr_10", case(10, "trailing", schedule=ZERO_SNR, prediction="v_prediction", **clip)
    yield "karras_10", case(10, "karras", peer=NO_KARRAS, **clip)


def ddim_cases():
    def case(steps, spacing, **changes):
        return options("ddim", steps, spacing, **changes)

    for eta in (0.0, 0.5, 1.0):
        for spacing in ("leading", "trailing", "linspace"):
            for steps in (50, 30):
                right = spacing == "leading" or (spacing == "trailing" and steps == 50)
                # Leading with n that does not divide T has the stride T // n itself.
                changes = {"eta": eta, "clip_sample": True, "peer": "right" if right else WRONG_STRIDE}
                yield f"{spacing}_{steps}_eta_{eta:g}", case(steps, spacing, **changes)
    clipped = {"clip_sample": True, "use_clipped_model_output": True}
    yield "unclipped_20", case(20, "trailing")
    yield "unclipped_20_eta_1", case(20, "trailing", eta=1.0)
    yield "clipped_output_20", case(20, "trailing", **clipped)
    yield "clipped_output_20_eta_0.3", case(20, "leading", eta=0.3, **clipped)
    yield "clip_range_20", case(20, "trailing", clip_sample=True, clip_sample_range=0.6)
    yield "sample_20", case(20, "trailing", prediction="sample")
    yield "velocity_20", case(20, "trailing", prediction="v_prediction", eta=0.5)
    yield "threshold_20", case(20, "trailing", dynamic_thresholding=0.9)
    yield "offset_20", case(20, "leading", steps_offset=1, clip_sample=True)
    yield "trailing_61", case(61, "trailing", clip_sample=True, peer=WRONG_LENGTH)
    yield "linspace_1", case(1, "linspace", peer=WRONG_SINGLE)
    yield "leading_1", case(1, "leading")
    yield "all", case(1000, "leading", clip_sample=True)
    yield "cosine_10", case(10, "trailing", schedule=COSINE, clip_sample=True)
    zero = {"schedule": ZERO_SNR}
    yield "zero_snr_velocity_10", case(10, "trailing", prediction="v_prediction", clip_sample=True, **zero)
    yield "zero_snr_velocity_10_eta_1", case(10, "trailing", prediction="v_prediction", eta=1.0, **zero)
    yield "zero_snr_sample_10", case(10, "trailing", prediction="sample", **zero)
    yield "karras_10", case(10, "karras", peer=NO_KARRAS)


def multistep_cases(method):
    """DPM-Solver++ 2M, its SDE form, and UniPC choose timesteps in one way."""

    def case(steps, spacing, **changes):
        return options(method, steps, spacing, **changes)

    for spacing, steps in (("linspace", 20), ("linspace", 7), ("leading", 20), ("leading", 7), ("trailing", 20)):
        yield f"{spacing}_{steps}", case(steps, spacing)
    yield "trailing_30", case(30, "trailing")
    yield "trailing_61", case(61, "trailing", peer=WRONG_LENGTH)
    yield "karras_10", case(10, "karras")
    yield "karras_20_sample", case(20, "karras", prediction="sample")
    yield "velocity_10", case(10, "linspace", prediction="v_prediction")
    yield "sample_10", case(10, "linspace", prediction="sample")
    yield "threshold_10", case(10, "linspace", dynamic_thresholding=0.9)
    yield "clip_10", case(10, "linspace", clip_sample=True, peer=NO_CLIP)
    yield "linspace_1", case(1, "linspace")
    yield "linspace_2", case(2, "linspace")
    yield "linspace_3", case(3, "linspace")
    yield "all", case(1000, "linspace", peer=WRONG_DOUBLE)
    clipped = "right" if method != "unipc" else NO_SCHEDULE
    yield "cosine_linspace_10", case(10, "linspace", schedule=COSINE, peer=clipped)
    yield "cosine_leading_10", case(10, "leading", schedule=COSINE, peer=clipped)
    yield "cosine_trailing_20", case(20, "trailing", schedule=COSINE, peer=clipped)
    yield "cosine_karras_10", case(10, "karras", schedule=COSINE, peer=NO_SCHEDULE)
    zero = {"schedule": ZERO_SNR, "prediction": "v_prediction", "peer": LAST_STEP_ZERO_SNR}
    yield "zero_snr_10", case(10, "trailing", **zero)


def euler_cases():
    def case(steps, spacing, **changes):
        return options("euler", steps, spacing, **changes)

    for spacing, steps in (("linspace", 20), ("linspace", 7), ("leading", 30), ("trailing", 30), ("karras", 10)):
        yield f"{spacing}_{steps}", case(steps, spacing)
    yield "velocity_10", case(10, "linspace", prediction="v_prediction")
    yield "sample_10", case(10, "karras", prediction="sample")
    yield "clip_10", case(10, "linspace", clip_sample=True, peer=NO_CLIP)
    yield "trailing_1", case(1, "trailing")
    yield "ancestral_20", case(20, "linspace", eta=1.0)
    yield "ancestral_30_trailing", case(30, "trailing", eta=1.0)
    yield "ancestral_10_karras", case(10, "karras", eta=1.0, peer=NO_KARRAS)
    yield "ancestral_10_half", case(10, "linspace", eta=0.5, peer="none: diffusers' has no eta between 0 and 1")


def heun_cases():
    def case(steps, spacing, **changes):
        return options("heun", steps, spacing, **changes)

    for spacing, steps in (("linspace", 20), ("linspace", 7), ("leading", 30), ("trailing", 30), ("karras", 10)):
        yield f"{spacing}_{steps}", case(steps, spacing)
    yield "velocity_10", case(10, "linspace", prediction="v_prediction")
    yield "sample_10", case(10, "karras", prediction="sample")
    yield "clip_10", case(10, "linspace", clip_sample=True)
    yield "clip_range_karras_10", case(10, "karras", clip_sample=True, clip_sample_range=0.6)
    yield "trailing_1", case(1, "trailing")
    yield "cosine_karras_10", case(10, "karras", schedule=COSINE, peer=NO_SCHEDULE)


CASES = {
    "ddpm": ddpm_cases,
    "ddim": ddim_cases,
    "dpmpp_2m": lambda: multistep_cases("dpmpp_2m"),
    "dpmpp_2m_sde": lambda: multistep_cases("dpmpp_2m_sde"),
    "unipc": lambda: multistep_cases("unipc"),
    "euler": euler_cases,
    "heun": heun_cases,
}


# The networks, told x and the level it is at


class Level(NamedTuple):
    """A timestep, which need not be whole, and abar there."""

    timestep: float
    abar: float

    @property
    def alpha(self):
        return math.sqrt(self.abar)

    @property
    def sigma(self):
        return math.sqrt(1 - self.abar)

    @property
    def ratio(self):
        """Karras's sigma."""
        return self.sigma / self.alpha

    @property
    def lam(self):
        """DPM-Solver's lambda."""
        return math.log(self.alpha / self.sigma) if self.abar > 0 else -math.inf


def denoiser(prediction):
    """The exact denoiser of data whose pixels are near plus or minus `mode`, all of an image with the same sign, plus
    an error: tests/sampler_goldens.rs has the same lines."""
    spread = 0.3

    def network(x, level):
        mode = tensor(MODES, tuple(x.shape[1:])).double()
        alpha, sigma = level.alpha, level.sigma
        variance = (alpha * spread) ** 2 + sigma**2
        side = torch.tanh(alpha * mode * x / variance)
        eps = sigma / variance * (x - alpha * mode * side)
        x0 = (alpha * spread**2 * x + sigma**2 * mode * side) / variance
        exact = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction]
        return exact + 0.1 * torch.sin(3 * x + 0.01 * level.timestep)

    return network


def unet_network(model):
    """A UNet2DModel."""

    def network(x, level):
        with torch.no_grad():
            return model(x, torch.tensor(level.timestep)).sample

    return network


def step_noise(evaluation, shape):
    """The noise that is handed in at an evaluation, of variance 1."""
    return tensor(NOISE + evaluation, shape, math.sqrt(3)).double()


# The papers


def ratios(config):
    """Karras's sigma at every timestep."""
    abar = make_tables(config)["alpha_cumprod"].numpy()
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - abar) / abar)


def levels_of(case):
    """The levels of the evaluations, without Heun's second ones."""
    config, n, spacing, method = case["schedule"], case["steps"], case["spacing"], case["method"]
    total, table = config["noise_steps"], ratios(config)
    multistep = method in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
    usable = total
    if multistep or method == "heun" or spacing == "karras":
        usable = max(int((-np.log(table) >= LAMBDA_MIN).sum()), 1)
    n = min(n, usable)
    if spacing == "karras":
        # Karras et al., arXiv 2206.00364, equation 5.
        ramp = np.arange(n) / max(n - 1, 1)
        low, high = table[0] ** (1 / RHO), table[usable - 1] ** (1 / RHO)
        sigmas = (high + ramp * (low - high)) ** RHO
        # The timestep at which the table, joined by straight lines, has that sigma.
        return [Level(float(np.interp(s, table[:usable], np.arange(usable))), 1 / (1 + s * s)) for s in sigmas]
    if n == usable:
        timesteps = np.arange(usable)[::-1]
    elif spacing == "leading":
        # arXiv 2305.08891, table 2. A multistep list is n of n + 1, without timestep 0.
        timesteps = usable // (n + multistep) * np.arange(multistep, n + multistep)[::-1]
    elif spacing == "trailing":
        timesteps = np.round(np.arange(usable, 0, -total / n))[:n] - 1
    else:
        timesteps = np.linspace(0, usable - 1, n + multistep)[::-1][:n]
        if n == 1:
            timesteps = np.array([usable - 1])
        if method not in ("euler", "heun"):
            timesteps = timesteps.round()
    timesteps = timesteps.astype(np.float64) + (case["steps_offset"] if spacing == "leading" else 0)
    abar = make_tables(config)["alpha_cumprod"].numpy()
    whole = timesteps == timesteps.astype(int)
    between = 1 / (1 + np.interp(timesteps, np.arange(total), table) ** 2)
    return [
        Level(float(t), float(abar[int(t)] if exact else value))
        for t, exact, value in zip(timesteps, whole, between, strict=True)
    ]


def read_output(case, x, output, at):
    """The limited estimate of x0, and the noise as the network sees it."""
    if case["prediction"] == "epsilon":
        x0, eps = (x - at.sigma * output) / at.alpha, output
    elif case["prediction"] == "sample":
        x0, eps = output, (x - at.alpha * output) / at.sigma
    else:
        # Salimans, Ho, arXiv 2202.00512.
        x0, eps = at.alpha * x - at.sigma * output, at.sigma * x + at.alpha * output
    if case["dynamic_thresholding"] is not None:
        # Saharia et al., arXiv 2205.11487, section 2.3.
        rows = x0.flatten(1)
        bound = torch.quantile(rows.abs(), case["dynamic_thresholding"], dim=1, keepdim=True).clamp(min=1)
        x0 = (rows.clamp(-bound, bound) / bound).reshape(x0.shape)
    elif case["clip_sample"]:
        x0 = x0.clamp(-case["clip_sample_range"], case["clip_sample_range"])
    return x0, eps


class Trajectory:
    """What happened in a loop: the timesteps and the x that the network was told, and the last estimate of x0."""

    def __init__(self):
        self.timesteps, self.xs, self.x0 = [], [], None

    def saw(self, x, timestep):
        self.timesteps.append(float(timestep))
        self.xs.append(x.double())

    def difference(self, other):
        """The largest difference of two, relative to the largest value; infinite where the timesteps differ."""
        if self.timesteps != other.timesteps:
            return math.inf
        pairs = zip([*self.xs, self.x0], [*other.xs, other.x0], strict=True)
        return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


def reference(case, network, x):
    """The loop by the papers' formulas."""
    seen = Trajectory()
    levels = levels_of(case)
    method = case["method"]
    earlier = []  # (level, x0) of the evaluations so far
    started = None  # UniPC: where the last step started, after its correction

    def ask(x, at):
        seen.saw(x, at.timestep)
        return read_output(case, x, network(x, at), at)

    for i, s in enumerate(levels):
        x0, eps = ask(x, s)
        if method == "unipc":
            if i > 0:
                x = unipc_corrected(levels[i - 1], s, started, [*earlier[-2:], (s, x0)])
            started = x
        earlier.append((s, x0))
        if i + 1 == len(levels):
            seen.x0 = x0
            return seen
        t = levels[i + 1]
        z = step_noise(i, x.shape)
        if method == "ddpm":
            x = ddpm_step(case, s, t, x, x0, z)
        elif method == "ddim":
            x = ddim_step(case, s, t, x, x0, eps, z)
        elif method in ("dpmpp_2m", "unipc"):
            x = t.sigma / s.sigma * x - t.alpha * math.expm1(s.lam - t.lam) * straight_line(earlier, t)
        elif method == "dpmpp_2m_sde":
            # arXiv 2211.01095, SDE-DPM-Solver++ 2M.
            h = t.lam - s.lam
            x = t.sigma / s.sigma * math.exp(-h) * x - t.alpha * math.expm1(-2 * h) * straight_line(earlier, t)
            x = x + t.sigma * math.sqrt(-math.expm1(-2 * h)) * z
        elif method == "euler":
            x = euler_step(case, s, t, x, x0, z)
        else:
            # arXiv 2206.00364, algorithm 1, in its frame y = x / alpha.
            y, slope = x / s.alpha, (x / s.alpha - x0) / s.ratio
            trial = y + (t.ratio - s.ratio) * slope
            trial_x0, _ = ask(trial * t.alpha, t)
            slope = (slope + (trial - trial_x0) / t.ratio) / 2
            x = (y + (t.ratio - s.ratio) * slope) * t.alpha


def ddpm_step(case, t, p, x, x0, z):
    """arXiv 2006.11239, equations 6 and 7, between any two levels."""
    a = t.abar / p.abar
    b = 1 - a
    mean = math.sqrt(p.abar) * b / (1 - t.abar) * x0 + math.sqrt(a) * (1 - p.abar) / (1 - t.abar) * x
    variance = b if case["variance"] == "fixed_large" else (1 - p.abar) / (1 - t.abar) * b
    return mean + math.sqrt(variance) * z


def ddim_step(case, t, p, x, x0, eps, z):
    """arXiv 2010.02502, equations 12 and 16."""
    sigma = case["eta"] * math.sqrt((1 - p.abar) / (1 - t.abar) * (1 - t.abar / p.abar))
    if case["use_clipped_model_output"]:
        eps = (x - math.sqrt(t.abar) * x0) / math.sqrt(1 - t.abar)
    return math.sqrt(p.abar) * x0 + math.sqrt(1 - p.abar - sigma**2) * eps + sigma * z


def euler_step(case, s, t, x, x0, z):
    """Karras's frame; the ancestral noise is k-diffusion's."""
    up = case["eta"] * math.sqrt(t.ratio**2 * (s.ratio**2 - t.ratio**2) / s.ratio**2)
    down = math.sqrt(t.ratio**2 - up**2)
    y = x / s.alpha
    return (y + (down - s.ratio) * (y - x0) / s.ratio + up * z) * t.alpha


def straight_line(earlier, t):
    """arXiv 2211.01095, algorithm 2: m0 + D1 / 2. Of first order where there is nothing before, or where what is
    before was pure noise, infinitely far away in lambda."""
    (s0, m0), before = earlier[-1], earlier[-2:-1]
    if not before or math.isinf(before[0][0].lam):
        return m0
    s1, m1 = before[0]
    r = (s0.lam - s1.lam) / (t.lam - s0.lam)
    return m0 + 0.5 * (m0 - m1) / r


def unipc_corrected(s, t, x, points):
    """UniC of arXiv 2302.04867 for x0: the exact solution from s to t where x0 is the polynomial in lambda through
    the given points, the last of which is at t. Of first order the authors take the mean of two x0 instead."""
    if math.isinf(points[0][0].lam):
        points = points[1:]
    h = t.lam - s.lam
    if len(points) < 3:
        return t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * (points[-1][1] + points[-2][1]) / 2
    nodes, weights = np.polynomial.legendre.leggauss(20)
    at = s.lam + h * (nodes + 1) / 2
    x = t.sigma / s.sigma * x
    for level, x0 in points:
        lagrange = np.prod([(at - o.lam) / (level.lam - o.lam) for o, _ in points if o != level], axis=0)
        x = x + t.alpha * float((weights * h / 2 * np.exp(at - t.lam) * lagrange).sum()) * x0
    return x


# diffusers


def run_diffusers(case, network, x):
    """The loop with diffusers' scheduler of the same options, its tables in f64."""
    method, config = case["method"], case["schedule"]
    tables = make_tables(config)
    arguments = {
        "num_train_timesteps": config["noise_steps"],
        "trained_betas": tables["betas"].tolist(),
        "prediction_type": case["prediction"],
        "timestep_spacing": "linspace" if case["spacing"] == "karras" else case["spacing"],
        "steps_offset": case["steps_offset"],
    }
    clip = {"clip_sample": case["clip_sample"], "clip_sample_range": case["clip_sample_range"]}
    karras = {"use_karras_sigmas": case["spacing"] == "karras"}
    threshold = {}
    if case["dynamic_thresholding"] is not None:
        # Its default sample_max_value of 1 would undo the division.
        threshold = {"thresholding": True, "dynamic_thresholding_ratio": case["dynamic_thresholding"]}
        threshold["sample_max_value"] = 1e9
    dpm = {"solver_order": 2, "algorithm_type": "dpmsolver++", "lambda_min_clipped": LAMBDA_MIN}
    make = {
        "ddpm": (diffusers.DDPMScheduler, clip | threshold | {"variance_type": case["variance"]}),
        "ddim": (diffusers.DDIMScheduler, clip | threshold),
        "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, karras | threshold | dpm),
        "dpmpp_2m_sde": (
            diffusers.DPMSolverMultistepScheduler,
            karras | threshold | dpm | {"algorithm_type": "sde-dpmsolver++"},
        ),
        "unipc": (diffusers.UniPCMultistepScheduler, karras | threshold | {"solver_order": 2, "solver_type": "bh2"}),
        "euler": (diffusers.EulerDiscreteScheduler, karras),
        "heun": (diffusers.HeunDiscreteScheduler, karras | clip),
    }
    kind, more = make[method]
    if method == "euler" and case["eta"] == 1:
        kind, more = diffusers.EulerAncestralDiscreteScheduler, {}
    scheduler = kind(**arguments, **more)
    put_f64_tables(scheduler, tables)
    scheduler.set_timesteps(case["steps"])
    in_sigma_frame = method in ("euler", "heun")
    if hasattr(scheduler, "sigmas"):
        put_f64_sigmas(scheduler, case)
    seen = Trajectory()
    if in_sigma_frame:
        x = x * float(torch.sqrt(scheduler.sigmas[0] ** 2 + 1))
    for i, timestep in enumerate(scheduler.timesteps):
        if in_sigma_frame:
            # At Heun's second evaluations too, sigmas holds the level that x is at.
            told = x / float(torch.sqrt(scheduler.sigmas[i] ** 2 + 1))
            at = Level(float(timestep), 1 / (1 + float(scheduler.sigmas[i]) ** 2))
            scheduler.scale_model_input(x, timestep)
        elif hasattr(scheduler, "sigmas"):
            told, at = x, Level(float(timestep), 1 / (1 + float(scheduler.sigmas[i]) ** 2))
        else:
            told, at = x, Level(float(timestep), float(tables["alpha_cumprod"][int(timestep)]))
        seen.saw(told, timestep)
        output = network(told, at)
        z = step_noise(i, x.shape)
        handed = {}
        if method == "ddim":
            handed = {"eta": case["eta"], "use_clipped_model_output": case["use_clipped_model_output"]}
            handed["variance_noise"] = z if case["eta"] > 0 else None
        elif method == "dpmpp_2m_sde":
            handed = {"variance_noise": z}
        else:
            # These two draw for themselves.
            for module in (scheduling_ddpm, scheduling_euler_ancestral_discrete):
                module.randn_tensor = lambda *_, z=z, **__: z
        x = scheduler.step(output, timestep, x, **handed).prev_sample
    seen.x0 = x.double()
    return seen


def put_f64_tables(scheduler, tables):
    """Replaces a scheduler's f32 tables."""
    for name, value in (
        ("betas", tables["betas"]),
        ("alphas", tables["alphas"]),
        ("alphas_cumprod", tables["alpha_cumprod"]),
        ("alpha_t", tables["sqrt_alpha_cumprod"]),
        ("sigma_t", tables["sqrt_one_minus_alpha_cumprod"]),
        ("one", torch.tensor(1.0, dtype=torch.float64)),
        ("final_alpha_cumprod", torch.tensor(1.0, dtype=torch.float64)),
    ):
        if hasattr(scheduler, name):
            setattr(scheduler, name, value)


def put_f64_sigmas(scheduler, case):
    """Replaces the rounded sigmas and timesteps of a scheduler that steps in sigma, which must be the same but for
    their rounding: f32, and with Karras spacing whole timesteps, or those of sigma joined in another way."""
    levels = levels_of(case)
    sigmas, timesteps = [level.ratio for level in levels], [level.timestep for level in levels]
    if case["method"] == "heun":
        sigmas, timesteps = (values[:1] + [v for v in values[1:] for _ in (0, 1)] for values in (sigmas, timesteps))
    sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    timesteps = torch.tensor(timesteps, dtype=torch.float64)
    if len(sigmas) != len(scheduler.sigmas) or not case["peer"] == "right":
        return
    assert torch.allclose(scheduler.sigmas.double(), sigmas, rtol=2e-4 if case["spacing"] == "karras" else 1e-5)
    assert (scheduler.timesteps.double() - timesteps).abs().max() <= (1 if case["spacing"] == "karras" else 1e-3)
    scheduler.sigmas, scheduler.timesteps = sigmas, timesteps


# The files


def hold_against_diffusers(name, case, network, x, seen):
    """Ends the script where diffusers is not as the case says."""
    if case["peer"].startswith("none"):
        return
    # Copies: a scheduler may work in place.
    difference = seen.difference(run_diffusers(case, network, x.clone()))
    if case["peer"] == "right":
        tolerance = ROUNDED_AGREEMENT.get(case["method"], AGREEMENT)
        assert difference < tolerance, f"{name}: diffusers differs from the papers by {difference:.3g}"
    else:
        assert difference > 1e-3, f"{name}: diffusers is right by now ({difference:.3g})"


def pack(name, seen, parts):
    """A trajectory's arrays: all timesteps, the x of some evaluations, and the last estimate of x0."""
    count = len(seen.xs)
    rows = sorted({i * (count - 1) // parts for i in range(parts + 1)})
    return {
        f"{name}.timesteps": torch.tensor(seen.timesteps, dtype=torch.float64),
        f"{name}.rows": torch.tensor(rows),
        f"{name}.x": torch.stack([seen.xs[row] for row in rows]),
        f"{name}.x0": seen.x0,
    }


@group
def sampler():
    """Every method and option, on the exact denoiser with an error."""
    start = tensor(IMAGES, SHAPE, math.sqrt(3)).double()
    for method, cases in CASES.items():
        tensors, described = {}, {}
        for name, case in cases():
            network = denoiser(case["prediction"])
            seen = reference(case, network, start)
            hold_against_diffusers(f"{method} {name}", case, network, start, seen)
            tensors |= pack(name, seen, 4)
            described[name] = case
        yield method, tensors, {"shape": list(SHAPE), "cases": described}


@group
def sampler_unet():
    """Loops with a UNet2DModel, the one of the golden unet_ddpm."""
    model, _ = make_unet("ddpm")
    network = unet_network(model.double())
    start = tensor(IMAGES, (2, 3, 8, 8), math.sqrt(3)).double()
    tensors, described = {}, {}
    # Read as noise, what this untrained network says at high noise would make f32's rounding a hundred times larger.
    velocity = {"prediction": "v_prediction", "clip_sample": True}
    for name, case in (
        ("ddpm", options("ddpm", 10, "trailing", clip_sample=True)),
        ("ddim", options("ddim", 10, "leading", **velocity)),
        ("ddim_eta_1", options("ddim", 10, "trailing", eta=1.0, clip_sample=True)),
        ("dpmpp_2m", options("dpmpp_2m", 10, "linspace", schedule=COSINE, dynamic_thresholding=0.995)),
        ("unipc", options("unipc", 10, "linspace", dynamic_thresholding=0.995)),
        ("heun", options("heun", 6, "karras", **velocity)),
    ):
        seen = reference(case, network, start)
        hold_against_diffusers(f"unet {name}", case, network, start, seen)
        tensors |= pack(name, seen, 2)
        described[name] = case
    yield "ddpm", tensors, {"shape": list(start.shape), "cases": described, "unet": "unet_ddpm"}
