#!/usr/bin/env python3
"""Makes the golden files of tests/goldens from PyTorch and diffusers, so that `make test` needs neither.

    python scripts/make_goldens.py                 # makes every group afresh
    python scripts/make_goldens.py unet gradients # these groups only
    python scripts/make_goldens.py --check         # makes nothing: compares with the files that are there

One function per group of goldens. It yields cases (name, tensors, description); each case becomes the file
tests/goldens/<group>_<name>.safetensors, whose arrays are the peers' results and whose metadata entry "golden"
is the description as JSON: what the Rust test needs to compute the same. To add a group, write such a
function and decorate it with @group. A fourth item in a case is a function that fills a folder: it
becomes tests/goldens/<group>_<name>, for files whose form is the golden thing.

Weights and inputs are not stored. They follow from integers by formula(), which tests/support/golden.rs repeats,
so that the files stay small even for a network of 35 million parameters.
"""

import argparse
import contextlib
import importlib.metadata
import filecmp
import json
import math
import pathlib
import shutil
import sys
import tempfile
import warnings

PINS = {"torch": "2.11.0", "diffusers": "0.42.1", "safetensors": "0.8.0", "numpy": "2.4.6"}
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "goldens"
# Other processors round otherwise; the tests' own tolerance is 2e-5 of the largest value.
CHECK_TOLERANCE = 5e-6
GROUPS = {}


def group(function):
    """Registers a function that yields a group's cases."""
    GROUPS[function.__name__] = function
    return function


def check_pins():
    """Ends with one line where the peers are not the pinned ones."""
    for name, version in PINS.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found = importlib.metadata.version(name).split("+")[0]
            if found == version:
                continue
            sys.exit(f"{name} is {found}, not {version}: pip install " + " ".join(f"{n}=={v}" for n, v in PINS.items()))
        sys.exit(f"{name} is missing: pip install " + " ".join(f"{n}=={v}" for n, v in PINS.items()))


# The numbers that both sides make for themselves


def formula(stream, count):
    """`count` values in [-1, 1) as f32: a 32-bit integer hash (Wellons' lowbias32) of stream and index."""
    import numpy as np

    x = np.arange(count, dtype=np.uint32) + np.uint32(stream * 0x9E3779B1 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    # 24 bits, so that every step is exact in f32.
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def tensor(stream, shape, scale=1.0):
    """A tensor of formula() values times an f32 scale."""
    import numpy as np
    import torch

    return torch.from_numpy(formula(stream, math.prod(shape)) * np.float32(scale)).reshape(shape)


def fill_parameters(model):
    """Sets parameter i of the state_dict by formula: norms near 1, matrices as PyTorch scales them."""
    import torch

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


# The U-Net

INPUT_STREAM, TARGET_STREAM, LABEL_STREAM = 100_000, 100_001, 100_002

TINY = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
DDPM = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
RESNET_LEVELS = {
    "down_block_types": ["ResnetDownsampleBlock2D"] * 2,
    "up_block_types": ["ResnetUpsampleBlock2D"] * 2,
}
ATTENTION_FIRST = {
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
}
THREE_LEVELS = {
    "block_out_channels": [8, 16, 24],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}

# name -> what differs from UNet2DModel's own defaults with TINY
UNETS = {
    "defaults": {},
    "ddpm": DDPM,
    "three_levels_28": DDPM | THREE_LEVELS | {"sample_size": 28, "in_channels": 1, "out_channels": 1},
    "one_level": {
        "block_out_channels": [16],
        "down_block_types": ["AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D"],
    },
    "attention_first": DDPM | ATTENTION_FIRST | {"attention_head_dim": 4},
    "uneven_heads": {"attention_head_dim": 12},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale_shift_norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "fourier": {"time_embedding_type": "fourier"},
    "class_table": {"num_class_embeds": 10},
    "class_timestep": {"class_embed_type": "timestep"},
    "class_identity": {"class_embed_type": "identity"},
    "mid_scale": {"mid_block_scale_factor": math.sqrt(2)},
    "no_mid_attention": {"add_attention": False},
    "no_mid": {"mid_block_type": None},
    "resnet_resample": ATTENTION_FIRST | {"downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet_levels": RESNET_LEVELS | {"mid_block_scale_factor": 2.0},
    "resnet_scale_shift": RESNET_LEVELS | {"resnet_time_scale_shift": "scale_shift", "act_fn": "swish"},
    "mish": {"act_fn": "mish"},
    "gelu": {"act_fn": "gelu"},
    "relu": {"act_fn": "relu"},
    "odd_width": {"block_out_channels": [9, 18], "norm_num_groups": 3, "attention_head_dim": None},
    "channels": {
        "in_channels": 4,
        "out_channels": 5,
        "center_input_sample": True,
        "layers_per_block": 3,
        "time_embedding_dim": 24,
        "norm_eps": 0.01,
    },
    "dropout": {"dropout": 0.5},
    "other_size": {"run_size": [12, 6]},
    "ddpm_cifar10_32": DDPM
    | {
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
}


def make_unet(name, changes=()):
    """The network of a case with its formula weights, and the arguments of its forward."""
    import diffusers
    import torch

    config = TINY | UNETS[name] | dict(changes)
    size = config.pop("run_size", [config["sample_size"]] * 2)
    model = diffusers.UNet2DModel(**config).eval()
    fill_parameters(model)
    timesteps = torch.tensor([3.0, 851.0])
    arguments = {"sample": tensor(INPUT_STREAM, (2, model.config.in_channels, *size), 2.0), "timestep": timesteps}
    if model.config.class_embed_type == "identity":
        arguments["class_labels"] = tensor(LABEL_STREAM, (2, model.config.block_out_channels[0] * 4))
    elif model.config.class_embed_type == "timestep":
        arguments["class_labels"] = torch.tensor([1.0, 9.0])
    elif model.config.num_class_embeds is not None:
        arguments["class_labels"] = torch.tensor([0, 9])
    return model, arguments


def describe_unet(model, arguments):
    """The file's metadata and the small inputs that go into it."""
    config = json.loads(model.to_json_string())
    inputs = {"timesteps": arguments["timestep"]}
    if "class_labels" in arguments:
        inputs["class_labels"] = arguments["class_labels"].float()
    description = {
        "config": config,
        "input_shape": list(arguments["sample"].shape),
        "names": list(model.state_dict()),
        "num_parameters": sum(value.numel() for value in model.state_dict().values()),
    }
    return description, inputs


@group
def unet():
    """Outputs of UNet2DModel."""
    import torch

    for name in UNETS:
        model, arguments = make_unet(name)
        with torch.no_grad():
            output = model(**arguments).sample
        description, inputs = describe_unet(model, arguments)
        yield name, {"output": output} | inputs, description


@group
def gradients():
    """Mean squared error of UNet2DModel's output and its derivative by the input and every parameter."""
    import torch

    for name in ("ddpm", "scale_shift", "resnet_resample"):
        # Narrow, since a file holds as many numbers as the network has parameters.
        model, arguments = make_unet(name, {"block_out_channels": [8, 16]})
        arguments["sample"].requires_grad_(True)
        output = model(**arguments).sample
        loss = torch.nn.functional.mse_loss(output, tensor(TARGET_STREAM, tuple(output.shape)))
        loss.backward()
        gradients = {f"grad.{key}": value.grad for key, value in model.named_parameters()}
        description, inputs = describe_unet(model, arguments)
        results = {"loss": loss.detach(), "grad_input": arguments["sample"].grad}
        yield name, results | gradients | inputs, description


@group
def checkpoint():
    """Folders that diffusers itself has written, and the outputs of the networks in them."""
    import diffusers
    import torch

    tiny = {"block_out_channels": [8, 8]}
    ddim = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    ddpm = diffusers.DDPMScheduler(num_train_timesteps=200, variance_type="fixed_large", clip_sample_range=2.0)
    cases = {
        # name -> network, what to save it with, how
        "pipeline": ("ddpm", diffusers.DDPMPipeline, ddpm, {}),
        "sharded_fp16": ("scale_shift", diffusers.DDIMPipeline, ddim, {"variant": "fp16", "max_shard_size": "40KB"}),
        "unet_alone": ("class_table", None, None, {}),
    }
    for name, (unet_name, pipeline, scheduler, options) in cases.items():
        model, arguments = make_unet(unet_name, tiny)
        if options.get("variant") == "fp16":
            model = model.half().float()
        with torch.no_grad():
            output = model(**arguments).sample
        description, inputs = describe_unet(model, arguments)
        if scheduler is not None:
            inputs["betas"] = scheduler.betas
        if options.get("variant") == "fp16":
            model = model.half()
        whole = model if pipeline is None else pipeline(unet=model, scheduler=scheduler)

        def fill(path, whole=whole, options=options):
            whole.save_pretrained(path, **options)

        yield name, {"output": output} | inputs, description, fill


# The files


def compare_folders(old, fresh):
    """What differs between two folders, all levels down."""
    names = {str(path.relative_to(root)) for root in (old, fresh) for path in root.rglob("*") if path.is_file()}
    _, differing, missing = filecmp.cmpfiles(old, fresh, sorted(names), shallow=False)
    return [f"{name} differs" for name in differing + missing]


def save(path, tensors, description):
    """Writes one golden file."""
    from safetensors.torch import save_file

    # One metadata entry only: with several, safetensors writes them in a random order.
    text = json.dumps(description, sort_keys=True)
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, path, {"golden": text})


def compare(path, tensors, description):
    """What differs between a golden file and the same made afresh; empty where nothing does."""
    from safetensors import safe_open

    if not path.exists():
        return ["is missing"]
    problems = []
    with safe_open(path, "pt") as file:
        if json.loads(file.metadata()["golden"]) != json.loads(json.dumps(description)):
            problems.append("the description differs")
        if set(file.keys()) != set(tensors):
            return problems + ["the names of the arrays differ"]
        for key, fresh in tensors.items():
            old = file.get_tensor(key)
            if old.shape != fresh.shape or old.dtype != fresh.dtype:
                problems.append(f"{key} has another shape or type")
                continue
            difference = (old.double() - fresh.detach().double()).abs().max().item()
            if difference > CHECK_TOLERANCE * max(old.double().abs().max().item(), 1e-12):
                problems.append(f"{key} differs by {difference:.3g}")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; all where none is named")
    parser.add_argument("--check", action="store_true", help="compare with the files that are there")
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown:
        parser.error(f"no group is named {', '.join(sorted(unknown))}: there are {', '.join(GROUPS)}")
    check_pins()
    warnings.filterwarnings("ignore", category=FutureWarning)
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in options.groups or GROUPS:
        made = 0
        for case, tensors, description, *fill in GROUPS[name]():
            made += 1
            stem = f"{name}_{case}"
            path = FOLDER / f"{stem}.safetensors"
            with tempfile.TemporaryDirectory() as folder:
                fresh = pathlib.Path(folder) / stem
                if fill:
                    fill[0](fresh)
                if options.check:
                    problems = compare(path, tensors, description)
                    problems += compare_folders(FOLDER / stem, fresh) if fill else []
                    failed |= bool(problems)
                    print(f"{stem}: {'; '.join(problems) or 'reproduced'}")
                    continue
                save(path, tensors, description)
                if fill:
                    shutil.rmtree(FOLDER / stem, ignore_errors=True)
                    shutil.copytree(fresh, FOLDER / stem)
            print(f"{stem}: {path.stat().st_size} bytes{' and a folder' if fill else ''}")
        if not made:
            sys.exit(f"group {name} made no case")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
