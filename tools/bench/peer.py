#!/usr/bin/env python3
"""A peer library as one of the programs that this tool compares; protocol.py says what it answers.

    python peer.py LIBRARY FOLDER TASK PRECISION THREADS DEVICE    LIBRARY: torch torch-compile onnxruntime openvino
    python peer.py export FOLDER ONNX                              writes the network of a folder as ONNX
    python peer.py devices                                         prints "cuda" where PyTorch finds such a device
    python peer.py count FOLDER                                    prints how many operations PyTorch counts in it

Each library is set up for the least time of one run at a time. Results start and end in the host's memory, as those of a C
caller do.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy

TRAINING_SEED = 7  # benches/contestant.cpp's
LEARNING_RATE = 1e-4


# --- Networks that only predict: what runs an exported graph, with the DDIM loop that a user of it would write ------------


class OnnxRuntime:
    tasks = ("step", "ddim")

    def __init__(self, folder, precision, threads, device):
        import onnxruntime

        if precision != "f32":
            raise ValueError("its CPU kernels compute in f32")
        self.version = f"ONNX Runtime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.folder, self.options, self.make = folder, options, onnxruntime.InferenceSession

    def prepare(self, batch):
        self.session = None
        self.session = self.make(f"{self.folder}/model.onnx", self.options, providers=["CPUExecutionProvider"])

    def predict(self, x, timesteps):
        return self.session.run(None, {"sample": x, "timestep": timesteps})[0]


class OpenVino:
    tasks = ("step", "ddim")

    def __init__(self, folder, precision, threads, device):
        import openvino

        self.version = f"OpenVINO {openvino.__version__.split('-')[0]}"
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        self.core, self.folder = openvino.Core(), folder

    def prepare(self, batch):
        self.request = None
        model = self.core.read_model(f"{self.folder}/model.onnx")
        shape = model.input("sample").partial_shape
        model.reshape({"sample": [batch, *(shape[i].get_length() for i in (1, 2, 3))], "timestep": [batch]})
        compiled = self.core.compile_model(model, "CPU", self.settings)
        self.request, self.output = compiled.create_infer_request(), compiled.output(0)

    def predict(self, x, timesteps):
        return self.request.infer({"sample": x, "timestep": timesteps}, share_inputs=True)[self.output]


def scheduler_config(folder):
    return json.loads((Path(folder) / "scheduler/scheduler_config.json").read_text())


def ddim(predict, noise, steps, config):
    """DDIM (arXiv 2010.02502) with eta 0, trailing timesteps and clipping, for the linear schedule."""
    total = config["num_train_timesteps"]
    betas = numpy.linspace(config["beta_start"], config["beta_end"], total)
    alpha_cumprod = numpy.append(numpy.cumprod(1 - betas), 1.0)  # the last is that before step 0
    timesteps = [*(total - 1 - k * total // steps for k in range(steps)), -1]
    x = noise
    for t, previous in zip(timesteps, timesteps[1:]):
        noise_now = predict(x, numpy.full(len(x), t, dtype=numpy.int64))
        a, b = alpha_cumprod[t], alpha_cumprod[previous]
        x0 = numpy.clip((x - numpy.float32((1 - a) ** 0.5) * noise_now) / numpy.float32(a**0.5), -1, 1)
        x = numpy.float32(b**0.5) * x0 + numpy.float32((1 - b) ** 0.5) * noise_now
    return x.clip(-1, 1)


class Graph:
    """A task of a library that runs the exported graph."""

    def __init__(self, library, task, folder):
        self.library, self.task, self.config = library, task, scheduler_config(folder)

    def load(self, images, number):
        self.library.prepare(len(images))
        self.images, self.number = images, number
        self.timesteps = numpy.full(len(images), number, dtype=numpy.int64)

    def run(self):
        if self.task == "step":
            return self.library.predict(self.images, self.timesteps)
        return ddim(self.library.predict, self.images, self.number, self.config)


# --- PyTorch --------------------------------------------------------------------------------------------------------------


class Torch:
    """diffusers' UNet2DModel and DDIMScheduler on PyTorch."""

    def __init__(self, folder, task, precision, threads, device, compiled):
        import diffusers
        import torch

        torch.set_num_threads(threads)
        self.torch, self.task, self.device, self.precision = torch, task, device, precision
        self.version = f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}"
        self.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.model = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False).to(device)
        self.model.train(task == "train")
        if device == "cuda":
            torch.backends.cudnn.benchmark = True
            if precision != "f32":
                self.model.to(memory_format=torch.channels_last)
        self.network = self.model
        if compiled:
            mode = "max-autotune" if device == "cuda" else None
            self.network = torch.compile(self.model, mode=mode, dynamic=False)
        if task == "train":
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)
            self.calls, self.losses = 0, []

    def autocast(self):
        return self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.precision == "bf16")

    def load(self, images, number):
        torch = self.torch
        torch.compiler.reset()
        self.host = torch.from_numpy(images)
        self.number = number
        self.timesteps = torch.full((len(images),), number, dtype=torch.int64, device=self.device)

    def run(self):
        if self.task == "train":
            return self.train()
        with self.torch.inference_mode(), self.autocast():
            images = self.host.to(self.device)
            out = self.predict(images, self.timesteps) if self.task == "step" else self.sample(images)
            return out.float().cpu().numpy()

    def predict(self, x, timesteps):
        self.torch.compiler.cudagraph_mark_step_begin()
        return self.network(x, timesteps, return_dict=False)[0]

    def sample(self, x):
        self.scheduler.set_timesteps(self.number)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.predict(x, t.expand(len(x)).to(self.device)), t, x).prev_sample
        return x.clamp(-1, 1)

    def example(self, call):
        """The timesteps and the noise that libdiffusion draws at this call. Made beforehand: not timed."""
        sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
        from goldens.formulas import training_normals, training_timestep

        torch, (batch, *shape) = self.torch, self.host.shape
        total = self.scheduler.config.num_train_timesteps
        each = self.host[0].numel()
        timesteps = torch.tensor([training_timestep(TRAINING_SEED, i, 2 * call, total) for i in range(batch)])
        noise = numpy.stack([training_normals(TRAINING_SEED, i, 2 * call + 1, each) for i in range(batch)])
        return timesteps, torch.from_numpy(noise).reshape(batch, *shape)

    def before(self):
        """What a run needs and its time does not include."""
        if self.task == "train":
            self.next = self.example(self.calls)

    def train(self):
        torch = self.torch
        images = self.host.to(self.device)
        timesteps, noise = (tensor.to(self.device) for tensor in self.next)
        noisy = self.scheduler.add_noise(images, noise, timesteps)
        with self.autocast():
            loss = torch.nn.functional.mse_loss(self.predict(noisy, timesteps).float(), noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.calls += 1
        return loss.item()


def export(folder, path):
    """The network as ONNX, for any batch."""
    import diffusers
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False).eval()

        def forward(self, sample, timestep):
            return self.model(sample, timestep, return_dict=False)[0]

    network = Network()
    config = network.model.config
    sample = torch.zeros(2, config.in_channels, config.sample_size, config.sample_size)
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        network,
        (sample, torch.zeros(2, dtype=torch.int64)),
        path,
        input_names=["sample", "timestep"],
        output_names=["prediction"],
        dynamic_shapes={"sample": {0: batch}, "timestep": {0: batch}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def count(folder):
    """Operations of one evaluation, by PyTorch's own counter. It sees attention only where that is made of products."""
    import diffusers
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    size = model.config.sample_size
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, model.config.in_channels, size, size), torch.tensor([500]))
    return counter.get_total_flops()


# --- Answering ------------------------------------------------------------------------------------------------------------


def make(library, folder, task, precision, threads, device):
    threads = int(threads)
    if library in ("torch", "torch-compile"):
        return Torch(folder, task, precision, threads, device, library == "torch-compile")
    kind = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}[library]
    work = Graph(kind(folder, precision, threads, device), task, folder)
    work.version = work.library.version
    return work


def serve(arguments, say):
    work = make(*arguments)
    say("ok", work.version)
    task, out = arguments[2], None
    shape = json.loads((Path(arguments[1]) / "unet/config.json").read_text())
    shape = (-1, shape["in_channels"], shape["sample_size"], shape["sample_size"])
    before = getattr(work, "before", lambda: None)
    for line in sys.stdin:
        try:
            command, *words = line.split()
            if command == "load":
                images = numpy.fromfile(words[2], dtype=numpy.float32).reshape(shape)
                work.load(numpy.ascontiguousarray(images[: int(words[0])]), int(words[1]))
                say("ok")
            elif command == "run":
                seconds, results = [], []
                for _ in range(int(words[0])):
                    before()
                    start = time.perf_counter()
                    results.append(work.run())
                    seconds.append(time.perf_counter() - start)
                out = numpy.array(results if task == "train" else results[-1], dtype=numpy.float32)
                say("ok", *seconds)
            elif command == "save":
                out.tofile(words[0])
                say("ok")
            else:
                say("error", f"the command is {command}: must be load, run or save")
        except Exception as error:
            say("error", f"{type(error).__name__}: {error}".replace("\n", " "))


def main():
    # What the libraries print goes elsewhere: standard output is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(*words):
        print(*words, file=answers, flush=True)

    if sys.argv[1] == "export":
        return export(*sys.argv[2:])
    if sys.argv[1] == "devices":
        import torch

        return say("cuda" if torch.cuda.is_available() else "")
    if sys.argv[1] == "count":
        return say(count(*sys.argv[2:]))
    try:
        serve(sys.argv[1:], say)
    except Exception as error:
        say("error", f"{type(error).__name__}: {error}".replace("\n", " "))
        sys.exit(1)


if __name__ == "__main__":
    main()
