#!/usr/bin/env python3
"""Opens checkpoints of libdiffusion in diffusers, with DDPMPipeline and DDIMPipeline, unchanged.

    python scripts/check_in_diffusers.py FOLDER...

Each FOLDER is a checkpoint or holds checkpoints. Where a checkpoint has a file expected.safetensors (x, timesteps,
output, betas, class_labels if any), what diffusers computes from the checkpoint is compared with it. Every
warning of diffusers counts as a failure. tests/checkpoint.rs makes such folders and calls this.
"""

import logging
import pathlib
import sys
import warnings

import diffusers
import torch
from safetensors.torch import load_file

TOLERANCE = 2e-5


def difference(got, want):
    """The largest difference, relative to the largest value."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def check(folder):
    """Loads one checkpoint and returns what is wrong with it."""
    problems = []
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
            if not found < TOLERANCE:
                problems.append(f"{kind}: the output differs by {found:.1e}")
        if "betas" in wanted:
            found = difference(scheduler.betas, wanted["betas"])
            if not found < 1e-5:
                problems.append(f"{kind}: the betas differ by {found:.1e}")
        plain = unet.config.class_embed_type is None and unet.config.num_class_embeds is None
        if plain and unet.config.in_channels == unet.config.out_channels and "fourier" not in folder.name:
            images = pipeline(batch_size=1, num_inference_steps=4, output_type="np").images
            if not (images.min() >= 0 and images.max() <= 1):
                problems.append(f"{kind}: samples outside [0, 1]")
    return problems


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
        problems = check(folder) + [record.getMessage() for record in logged]
        failed |= bool(problems)
        print(f"{folder.name}: {'; '.join(problems) or 'opens in DDPMPipeline and DDIMPipeline'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
