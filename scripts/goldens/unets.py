"""UNet2DModel: outputs, gradients, and the folders that diffusers itself writes."""

import json
import math

import diffusers
import torch

from . import group
from .formulas import INPUT, LABEL, TARGET, digest, fill_parameters, tensor

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
    config = TINY | UNETS[name] | dict(changes)
    size = config.pop("run_size", [config["sample_size"]] * 2)
    model = diffusers.UNet2DModel(**config).eval()
    fill_parameters(model)
    timesteps = torch.tensor([3.0, 851.0])
    arguments = {"sample": tensor(INPUT, (2, model.config.in_channels, *size), 2.0), "timestep": timesteps}
    if model.config.class_embed_type == "identity":
        arguments["class_labels"] = tensor(LABEL, (2, model.config.block_out_channels[0] * 4))
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
    """Outputs of UNet2DModel, and in short the derivative of their mean squared error by the input and by every
    parameter, which is computed in f64: some of the derivatives are rounding alone in f32."""
    for name in UNETS:
        model, arguments = make_unet(name)
        with torch.no_grad():
            output = model(**arguments).sample
        description, inputs = describe_unet(model, arguments)
        loss, grad_input, gradients = differentiate(model, arguments)
        short = {"loss": loss, "grad_input": grad_input, "gradients": digest(gradients.values())}
        yield name, {"output": output} | {key: value.float() for key, value in short.items()} | inputs, description


def differentiate(model, arguments):
    """The mean squared error of the output, its derivative by the input, and by each parameter by name, in f64."""
    arguments = dict(arguments)
    for key in ("sample", "class_labels"):
        if key in arguments and arguments[key].is_floating_point():
            arguments[key] = arguments[key].double()
    # An embedding of timesteps as classes is not cast to the type of the weights.
    model.double().time_proj.register_forward_hook(lambda _, __, embedding: embedding.double())
    arguments["sample"].requires_grad_(True)
    output = model(**arguments).sample
    loss = torch.nn.functional.mse_loss(output, tensor(TARGET, tuple(output.shape)).to(output.dtype))
    loss.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.requires_grad}
    return loss.detach(), arguments["sample"].grad, gradients


@group
def gradients():
    """The same derivatives, whole."""
    for name in ("ddpm", "scale_shift", "resnet_resample"):
        # Narrow, since a file holds as many numbers as the network has parameters.
        model, arguments = make_unet(name, {"block_out_channels": [8, 16]})
        loss, grad_input, gradients = differentiate(model, arguments)
        description, inputs = describe_unet(model, arguments)
        results = {"loss": loss, "grad_input": grad_input} | {f"grad.{key}": g for key, g in gradients.items()}
        yield name, {key: value.float() for key, value in results.items()} | inputs, description


@group
def checkpoint():
    """Folders that diffusers itself has written, and the outputs of the networks in them."""
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
