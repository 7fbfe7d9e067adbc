"""Opens a checkpoint of libdiffusion in diffusers and samples from it: pip install torch diffusers, no libdiffusion."""

import sys

import torch
from diffusers import DDIMPipeline

model, out = sys.argv[1:3] if len(sys.argv) > 2 else ("models/textures", "textures.png")
pipeline = DDIMPipeline.from_pretrained(model, low_cpu_mem_usage=False)
images = pipeline(batch_size=1, num_inference_steps=20, generator=torch.Generator().manual_seed(7)).images
images[0].save(out)
print(f"open {out} to see a texture of {images[0].width}x{images[0].height}")
