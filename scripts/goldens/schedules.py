"""Beta schedules by their papers' formulas, in extended precision, and adding noise.

Each table is held against diffusers' own, which are f32, before it is stored.
"""

import diffusers
import numpy as np
import torch

from . import group
from .formulas import IMAGES, NOISE, tensor

REAL = np.longdouble

# name of a schedule -> what diffusers' DDPMScheduler calls it: None where it has none
NAMES = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "sigmoid": "sigmoid",
    "cosine": None,
    "cosine_ramp": None,
    "given": "trained_betas",
}


def schedule(kind, noise_steps, beta_start=1e-4, beta_end=0.02, zero_snr=False):
    """What a schedule is made from: the fields of src/schedule.rs's ScheduleConfig."""
    return {
        "kind": kind,
        "noise_steps": noise_steps,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "rescale_zero_terminal_snr": zero_snr,
    }


def given_betas(noise_steps):
    """A table that no formula of ours makes: rises, falls, rises."""
    u = np.arange(noise_steps, dtype=REAL) / noise_steps
    return 0.01 + 0.009 * np.sin(9 * u) + 0.01 * u


def make_betas(config):
    """The betas of a schedule."""
    steps, start, end = config["noise_steps"], REAL(config["beta_start"]), REAL(config["beta_end"])
    along = np.arange(steps, dtype=REAL) / max(steps - 1, 1)
    pi = 4 * np.arctan(REAL(1))
    if config["kind"] == "linear":
        betas = start + (end - start) * along
    elif config["kind"] == "scaled_linear":
        betas = (np.sqrt(start) + (np.sqrt(end) - np.sqrt(start)) * along) ** 2
    elif config["kind"] == "sigmoid":
        betas = start + (end - start) / (1 + np.exp(6 - 12 * along))
    elif config["kind"] == "cosine_ramp":
        betas = start + (end - start) * (1 - np.cos(pi * along)) / 2
    elif config["kind"] == "cosine":
        # Nichol, Dhariwal, arXiv 2102.09672, equation 17.
        u = np.arange(steps + 1, dtype=REAL) / steps
        abar = np.cos((u + REAL("0.008")) / REAL("1.008") * pi / 2) ** 2
        betas = np.clip(1 - abar[1:] / abar[:-1], start, end)
    else:
        betas = given_betas(steps)
    if config["rescale_zero_terminal_snr"]:
        betas = rescale(betas)
    return betas


def rescale(betas):
    """Lin, Liu, Li, Yang, arXiv 2305.08891, algorithm 1. Of one timestep nothing is left: diffusers has 0/0."""
    if len(betas) == 1:
        return np.ones(1, dtype=REAL)
    root = np.sqrt(np.cumprod(1 - betas))
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return np.concatenate([1 - abar[:1], 1 - abar[1:] / abar[:-1]])


def make_tables(config):
    """The five tables, in f64."""
    betas = make_betas(config)
    abar = np.cumprod(1 - betas)
    tables = {
        "betas": betas,
        "alphas": 1 - betas,
        "alpha_cumprod": abar,
        "sqrt_alpha_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alpha_cumprod": np.sqrt(1 - abar),
    }
    return {name: torch.from_numpy(table.astype(np.float64)) for name, table in tables.items()}


def diffusers_arguments(config):
    """How a diffusers scheduler is asked for this schedule; None where it cannot be by name."""
    name = NAMES[config["kind"]]
    zero_snr = config["rescale_zero_terminal_snr"]
    if config["kind"] == "cosine" and config["beta_start"] < 1e-9 and config["beta_end"] == 0.999:
        # Its cosine has the paper's clip above and none below.
        name = "squaredcos_cap_v2"
    if name is None or (zero_snr and config["noise_steps"] == 1):
        return None
    arguments = {"num_train_timesteps": config["noise_steps"], "rescale_betas_zero_snr": zero_snr}
    if name == "trained_betas":
        return arguments | {"trained_betas": given_betas(config["noise_steps"]).astype(np.float64).tolist()}
    return arguments | {
        "beta_schedule": name,
        "beta_start": config["beta_start"],
        "beta_end": config["beta_end"],
    }


CONFIGS = {
    f"{name}_{steps}": schedule(kind, steps, *rest)
    for name, kind, *rest in (
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear", 0.00085, 0.012),
        ("sigmoid", "sigmoid"),
        ("cosine", "cosine", 1e-4, 0.999),
        ("cosine_paper", "cosine", 1e-12, 0.999),
        ("cosine_low_end", "cosine", 1e-4, 0.02),
        ("cosine_ramp", "cosine_ramp"),
        ("given", "given"),
        ("zero_snr_linear", "linear", 1e-4, 0.02, True),
        ("zero_snr_cosine", "cosine", 1e-12, 0.999, True),
        ("zero_snr_scaled_linear", "scaled_linear", 0.00085, 0.012, True),
    )
    for steps in (1, 2, 50, 200, 1000)
}


@group
def schedules():
    """The tables of every schedule; a file for each number of timesteps. The alphas are left out: 1 - beta."""
    for steps in sorted({config["noise_steps"] for config in CONFIGS.values()}):
        tensors, cases = {}, {}
        for name, config in CONFIGS.items():
            if config["noise_steps"] != steps:
                continue
            tables = make_tables(config)
            arguments = diffusers_arguments(config)
            if arguments is not None:
                peer = diffusers.DDPMScheduler(**arguments)
                # In f32 each beta has its own rounding and the product adds up all of them; the rescaled betas are
                # taken from that product.
                assert_close(f"{name} betas", peer.betas, tables["betas"], 1e-5 if "zero_snr" in name else 1e-7)
                assert_close(f"{name} abar", peer.alphas_cumprod, tables["alpha_cumprod"], 1e-5)
            cases[name] = config | {"in_diffusers": arguments is not None}
            tensors |= {f"{name}.{table}": values for table, values in tables.items() if table != "alphas"}
        yield f"{steps}", tensors, {"cases": cases}


def assert_close(name, peer, ours, tolerance):
    """Ends the script where diffusers does not agree with the formula."""
    difference = (peer.double() - ours.double()).abs().max().item()
    assert difference <= tolerance, f"{name}: diffusers differs from the formula by {difference:.3g}"


@group
def add_noise():
    """DDPMScheduler.add_noise and get_velocity, in f64, of images and noise by formula."""
    shape = (8, 3, 5, 4)
    images, noise = tensor(IMAGES, shape), tensor(NOISE, shape, 3**0.5)
    for name in ("linear_1000", "cosine_1000", "zero_snr_linear_1000", "cosine_low_end_50", "given_200"):
        config = CONFIGS[name]
        last = config["noise_steps"] - 1
        timesteps = torch.tensor([0, 1, last // 5, last // 3, last // 2, last - last // 4, last - 1, last])
        scheduler = diffusers.DDPMScheduler(num_train_timesteps=config["noise_steps"])
        scheduler.alphas_cumprod = make_tables(config)["alpha_cumprod"]
        noisy = scheduler.add_noise(images.double(), noise.double(), timesteps)
        velocity = scheduler.get_velocity(images.double(), noise.double(), timesteps)
        tensors = {"timesteps": timesteps, "noisy": noisy, "velocity": velocity}
        yield name, tensors, {"schedule": config, "shape": list(shape)}
