"""Training with torch.optim, in f64, from the same weights, images, timesteps and noise as the library's."""

import math

import torch

from . import group
from .formulas import digest, tensor, training_normals, training_timestep
from .samplers import COSINE
from .schedules import make_tables
from .unets import describe_unet, make_unet

BATCH, SIZE, UPDATES, SEED = 4, 8, 10, 0x123456789ABCDEF0
# The stream of formula() that the images of a call are; call 0's.
BATCHES = 300_000

# TrainingConfig's fields, and what the network predicts.
DEFAULTS = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "gradient_clip": 0.0,
    "ema_decay": 0.0,
    "prediction": "epsilon",
    "loss": "mse",
    "huber_delta": 1.0,
    "min_snr_gamma": 0.0,
    "warmup_steps": 0,
    "decay_steps": 0,
    "accumulation_steps": 1,
}
PLAIN = {
    "adam": {},
    "adam_l2": {"weight_decay": 0.01},
    "adamw_clip_ema": {"optimizer": "adamw", "weight_decay": 0.01, "gradient_clip": 1.0, "ema_decay": 0.999},
    "velocity": {"prediction": "v_prediction"},
    "sample": {"prediction": "sample", "ema_decay": 0.9},
}
OPTIONS = {
    "min_snr_epsilon": {"min_snr_gamma": 5.0},
    "min_snr_velocity": {"min_snr_gamma": 5.0, "prediction": "v_prediction"},
    "min_snr_sample": {"min_snr_gamma": 5.0, "prediction": "sample"},
    "huber": {"loss": "huber", "huber_delta": 0.7},
    "warmup": {"warmup_steps": 4},
    "warmup_cosine": {"warmup_steps": 3, "decay_steps": 8},
    "accumulation": {"accumulation_steps": 3},
    "together": {
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "gradient_clip": 0.02,
        "ema_decay": 0.99,
        "prediction": "v_prediction",
        "loss": "huber",
        "huber_delta": 0.3,
        "min_snr_gamma": 3.0,
        "warmup_steps": 2,
        "decay_steps": 20,
        "accumulation_steps": 2,
    },
}


def example(config, abar, call):
    """What the network is given and what it is to predict at a call: x_t, timesteps, target, and the weights of the
    images in the loss."""
    shape = (BATCH, 3, SIZE, SIZE)
    images = tensor(BATCHES + call, shape).double()
    timesteps = torch.tensor([training_timestep(SEED, i, 2 * call, len(abar)) for i in range(BATCH)])
    each = math.prod(shape[1:])
    noise = torch.stack([torch.from_numpy(training_normals(SEED, i, 2 * call + 1, each)) for i in range(BATCH)])
    noise = noise.reshape(shape).double()
    at = abar[timesteps].reshape(-1, 1, 1, 1)
    alpha, sigma, snr = at.sqrt(), (1 - at).sqrt(), at / (1 - at)
    target = {"epsilon": noise, "sample": images, "v_prediction": alpha * noise - sigma * images}
    weight = torch.ones_like(snr)
    if config["min_snr_gamma"] > 0:
        # Hang et al., arXiv 2303.09556: min(snr, gamma) on x0, divided by what the target weighs of itself.
        own = {"epsilon": snr, "sample": 1.0, "v_prediction": snr + 1}[config["prediction"]]
        weight = snr.clamp(max=config["min_snr_gamma"]) / own
    return alpha * images + sigma * noise, timesteps, target[config["prediction"]], weight


def rate_factor(config, step):
    """The learning rate at an optimizer step as a part of its full value."""
    warmup, end = config["warmup_steps"], config["decay_steps"]
    if step < warmup:
        return (step + 1) / warmup
    if end == 0:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (end - warmup))))


def train(config):
    """The losses of all calls, the trained network, the moving average of its weights, and the gradients' norms."""
    model, arguments = make_unet("ddpm", {"block_out_channels": [8, 16]})
    model = model.double().train()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config["optimizer"]]
    optimizer = kind(model.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(config, step))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config["ema_decay"])
    )
    # Its first update would copy the weights: the average starts from the first ones.
    average.n_averaged += 1
    abar = make_tables(COSINE)["alpha_cumprod"]
    criterion = {
        "mse": torch.nn.MSELoss(reduction="none"),
        "huber": torch.nn.HuberLoss(reduction="none", delta=config["huber_delta"]),
    }[config["loss"]]
    losses, norms = [], []
    for call in range(UPDATES * config["accumulation_steps"]):
        noisy, timesteps, target, weight = example(config, abar, call)
        loss = (weight * criterion(model(noisy, timesteps).sample, target)).mean()
        (loss / config["accumulation_steps"]).backward()
        losses.append(loss.detach())
        if (call + 1) % config["accumulation_steps"]:
            continue
        limit = config["gradient_clip"] or math.inf
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), limit).item())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.update_parameters(model)
    return torch.stack(losses), model, arguments, average.module, norms


def cases(variants):
    for name, changes in variants.items():
        config = DEFAULTS | changes
        losses, model, arguments, average, norms = train(config)
        # A limit that no gradient reaches would test nothing.
        assert not config["gradient_clip"] or max(norms) > 1.2 * config["gradient_clip"], f"{name}: {norms}"
        tensors = {"losses": losses, "weights": digest(model.parameters()).float()}
        if config["ema_decay"] > 0:
            tensors["ema"] = digest(average.parameters()).float()
        description, _ = describe_unet(model, arguments)
        yield name, tensors, {
            "config": description["config"],
            "training": config,
            "schedule": COSINE,
            "seed": SEED,
            "batch": [BATCH, 3, SIZE, SIZE],
        }


@group
def training():
    """Ten steps with torch.optim's Adam and AdamW."""
    yield from cases(PLAIN)


@group
def options_training():
    """Ten optimizer steps with what training can do besides."""
    yield from cases(OPTIONS)


@group
def noise():
    """The library's own random numbers of training, from their papers."""
    names = [(0, 0, 1), (SEED, 3, 19), (2**64 - 1, 2**40 + 5, 2**32 - 1), (42, 2**32, 0)]
    normals = torch.stack([torch.from_numpy(training_normals(*name, 101)) for name in names])
    timesteps = torch.tensor([[training_timestep(*name, count) for count in (1, 50, 1000)] for name in names])
    yield "training", {"normals": normals, "timesteps": timesteps}, {"names": [list(name) for name in names]}
