"""The numbers that both sides make for themselves: what a golden file need not hold.

Weights, images and the noise of samplers follow from integers by formula(), which tests/support/golden.rs
repeats. The timesteps and the noise of training steps are the library's own (src/noise.rs): Philox4x32-10 and
Box-Muller, written here a second time from their papers, so that the whole way of a training step is checked.
"""

import math

import numpy as np
import torch

# Streams of formula(); below 100,000 they are the numbers of parameters.
INPUT, TARGET, LABEL, IMAGES, NOISE, MODES = 100_000, 100_001, 100_002, 100_003, 200_000, 100_004


def formula(stream, count):
    """`count` values in [-1, 1) as f32: a 32-bit integer hash (Wellons' lowbias32) of stream and index."""
    x = np.arange(count, dtype=np.uint32) + np.uint32(stream * 0x9E3779B1 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    # 24 bits, so that every step is exact in f32.
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def tensor(stream, shape, scale=1.0):
    """A tensor of formula() values times an f32 scale."""
    return torch.from_numpy(formula(stream, math.prod(shape)) * np.float32(scale)).reshape(shape)


def fill_parameters(model):
    """Sets parameter i of the state_dict by formula: norms near 1, matrices as PyTorch scales them."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.state_dict().items()):
            shape = tuple(parameter.shape)
            if name == "time_proj.weight":
                value = tensor(i, shape, 16.0)
            elif len(shape) == 1 and "norm" in name and name.endswith("weight"):
                value = tensor(i, shape, 0.25) + 1.0
            elif len(shape) == 1:
                value = tensor(i, shape, 0.25)
            else:
                value = tensor(i, shape, 1.0 / math.sqrt(math.prod(shape[1:])))
            parameter.copy_(value)


def digest(tensors):
    """Numbers that any change to a tensor shows in, [number of tensors, 19]: sixteen of its values at even
    distances, its largest magnitude, its norm, and its projection on formula() values."""
    rows = []
    for value in tensors:
        flat = value.detach().double().flatten()
        picked = flat[torch.arange(16) * flat.numel() // 16]
        direction = tensor(TARGET, (flat.numel(),)).double()
        rows.append(torch.cat([picked, torch.stack([flat.abs().max(), flat.norm(), flat @ direction])]))
    return torch.stack(rows)


# The noise of training: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

TRAIN = 0x80000000  # the domain of training in the counter's top word


def philox(counters, key):
    """Philox4x32-10 of counters [n, 4] under a key of two words: [n, 4], uint32."""
    a, b, c, d = (counters[:, i].astype(np.uint64) for i in range(4))
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (q >> shift) ^ b ^ k0, q & low, (p >> shift) ^ d ^ k1, p & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack([a, b, c, d], axis=1)


def training_words(seed, image, draw, blocks):
    """The first blocks of a draw of an image's stream, [blocks, 4]."""
    counters = np.zeros((blocks, 4), dtype=np.uint64)
    counters[:, 0] = np.arange(blocks)
    counters[:, 1:] = [draw, image & 0xFFFFFFFF, image >> 32 ^ TRAIN]
    return philox(counters, (seed & 0xFFFFFFFF, seed >> 32))


def training_timestep(seed, image, draw, count):
    """A timestep in 0..count: the high half of a 64-bit word times count."""
    words = training_words(seed, image, draw, 1)[0]
    return (int(words[1]) << 32 | int(words[0])) * count >> 64


def training_normals(seed, image, draw, count):
    """Normals by Box and Muller (1958), f32. The radius takes the middle of one of 2^32 intervals of (0, 1), the
    angle 31 bits over (-pi/2, pi/2); its top bit mirrors the cosine."""
    words = training_words(seed, image, draw, -(-count // 4)).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log((words[:, 0] + 0.5) / 2.0**32))
    angle = np.pi * (((words[:, 1] & np.uint64(0x7FFFFFFF)) + 0.5) / 2.0**31 - 0.5)
    mirror = np.where(words[:, 1] >> np.uint64(31), -1.0, 1.0)
    pairs = np.stack([mirror * radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.flatten()[:count].astype(np.float32)
