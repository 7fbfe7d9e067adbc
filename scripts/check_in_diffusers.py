#!/usr/bin/env python3
"""Opens checkpoints of libdiffusion in diffusers, with DDPMPipeline and DDIMPipeline, unchanged.

    python scripts/check_in_diffusers.py FOLDER...

Each FOLDER is a checkpoint or holds checkpoints. Where a checkpoint has a file expected.safetensors (x, timesteps,
output, betas or alphas_cumprod, class_labels if any), what diffusers computes from the checkpoint is compared with it.
Every warning of diffusers counts as a failure. `make check-diffusers` does this with what tests/diffusers writes by
diffusion_save: every schedule and prediction type, with a moving average; tests/checkpoint.rs with other networks.
"""

import logging
import pathlib
import sys
import warnings

import diffusers
import torch
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from safetensors.torch import load_file

TOLERANCE = 2e-5  # of the network's output, relative to its largest value
SCHEDULE_TOLERANCE = 1e-6  # of alphas_cumprod, which are in 0..1


def difference(got, want):
    """The largest difference, relative to the largest value."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def check(folder):
    """Loads one checkpoint and returns what is wrong with it, and the largest differences."""
    problems, largest = [], {}
    # The option only spares a remark about a package that speeds loading up.
    kinds = (diffusers.DDPMPipeline, diffusers.DDIMPipeline)
    pipelines = [kind.from_pretrained(folder, low_cpu_mem_usage=False) for kind in kinds]
    expected = folder / "expected.safetensors"
    wanted = load_file(expected) if expected.exists() else {}
    for pipeline in pipelines:
        kind = type(pipeline).__name__
        pipeline.set_progress_bar_config(disable=True)
        unet, scheduler = pipeline.unet.eval(), pipeline.scheduler
        if "output" in wanted:
            arguments = {"sample": wanted["x"], "timestep": wanted["timesteps"]}
            if "class_labels" in wanted:
                labels = wanted["class_labels"]
                arguments["class_labels"] = labels if unet.config.class_embed_type else labels.long()
            with torch.no_grad():
                found = difference(unet(**arguments).sample, wanted["output"])
            largest["output"] = max(found, largest.get("output", 0))
            if not found < TOLERANCE:
                problems.append(f"{kind}: the output differs by {found:.1e}")
        if "betas" in wanted:
            found = difference(scheduler.betas, wanted["betas"])
            if not found < 1e-5:
                problems.append(f"{kind}: the betas differ by {found:.1e}")
        if "alphas_cumprod" in wanted:
            table = wanted["alphas_cumprod"].double()
            found = (scheduler.alphas_cumprod.double() - table).abs().max().item()
            largest["alphas_cumprod"] = max(found, largest.get("alphas_cumprod", 0))
            # diffusers computes in 32 bits, where hundreds of equal betas (a clipped schedule) round the same way each
            # time: its distance from its own arithmetic in 64 bits is allowed for, ours from that is not.
            rounding = 0
            if scheduler.config.trained_betas is not None:
                betas = torch.tensor(scheduler.config.trained_betas, dtype=torch.float64)
                betas = rescale_zero_terminal_snr(betas) if scheduler.config.rescale_betas_zero_snr else betas
                exact = (1 - betas).cumprod(0)
                rounding = (scheduler.alphas_cumprod.double() - exact).abs().max().item()
                largest["in 64 bits"] = (exact - table).abs().max().item()
            if not (found < SCHEDULE_TOLERANCE + rounding and largest.get("in 64 bits", 0) < SCHEDULE_TOLERANCE):
                problems.append(f"{kind}: alphas_cumprod differ by {found:.1e}, its own rounding is {rounding:.1e}")
        plain = unet.config.class_embed_type is None and unet.config.num_class_embeds is None
        if plain and unet.config.in_channels == unet.config.out_channels and "fourier" not in folder.name:
            images = pipeline(batch_size=1, num_inference_steps=4, output_type="np").images
            if not (images.min() >= 0 and images.max() <= 1):
                problems.append(f"{kind}: samples outside [0, 1]")
    return problems, largest


class Collector(logging.Handler):
    """Keeps what diffusers would print."""

    def __init__(self, records):
        super().__init__()
        self.records = records

    def emit(self, record):
        self.records.append(record)


def main():
    logged = []
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_default_handler()
    diffusers.utils.logging.add_handler(Collector(logged))
    warnings.simplefilter("error", UserWarning)
    folders = []
    for name in map(pathlib.Path, sys.argv[1:]):
        inner = sorted(path.parent for path in name.glob("*/model_index.json"))
        folders += [name] if (name / "model_index.json").exists() else inner
    if not folders:
        sys.exit("no checkpoint: name folders that have a model_index.json")
    failed = False
    for folder in folders:
        logged.clear()
        problems, largest = check(folder)
        problems += [record.getMessage() for record in logged]
        failed |= bool(problems)
        differences = "".join(f"; {name} within {value:.1e}" for name, value in largest.items())
        print(f"{folder.name}: {'; '.join(problems) or 'opens in DDPMPipeline and DDIMPipeline' + differences}")
    print(f"{len(folders)} checkpoints, {'not all as they should be' if failed else 'all as they should be'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
