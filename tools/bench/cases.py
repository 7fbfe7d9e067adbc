"""What is measured: networks, tasks, batches, precisions; and who takes part."""

from dataclasses import dataclass
from fnmatch import fnmatch


@dataclass(frozen=True)
class Net:
    title: str
    image_size: int
    channels: int
    widths: tuple


NETS = {
    "cifar10": Net("ddpm-cifar10-32", 32, 3, (128, 256, 256, 256)),
    "textures": Net("textures 64x64", 64, 3, (32, 64, 128)),
}
# What NUMBER of the protocol is: the timestep, the steps, nothing.
NUMBERS = {"step": 500, "ddim": 50, "train": 0}
TASKS = {"step": "a denoising step", "ddim": "50 steps of DDIM", "train": "a training step"}


@dataclass(frozen=True)
class Case:
    task: str
    net: str
    precision: str
    batch: int
    device: str = "cpu"

    @property
    def name(self):
        """step-cifar10-f32-8, and -cuda after it on a GPU: what --cases is compared with."""
        return "-".join([self.task, self.net, self.precision, str(self.batch)] + (["cuda"] if self.device == "cuda" else []))

    @property
    def group(self):
        """Cases of one group are measured on the same programs. Training changes the weights, so each case starts anew."""
        return (self.task, self.net, self.precision, self.device, self.batch if self.task == "train" else 0)


def cases(devices):
    """All cases, those of a group beside each other and their batches rising, so that a program's peak memory so far is
    that of its last case."""
    batches = {
        ("step", "cpu"): (1, 8, 32),
        ("ddim", "cpu"): (1, 8),
        ("train", "cpu"): (32,),
        ("step", "cuda"): (1, 8, 32, 256),
        ("ddim", "cuda"): (1, 32),
        ("train", "cuda"): (32, 256),
    }
    return [
        Case(task, net, precision, batch, device)
        for device in devices
        for task in TASKS
        for net in NETS
        for precision in ("f32", "bf16")
        for batch in batches[task, device]
    ]


def chosen(all_cases, patterns):
    """The cases that any of the patterns matches, as file names are matched; all of them without patterns."""
    return [case for case in all_cases if not patterns or any(fnmatch(case.name, p) for p in patterns)]


@dataclass(frozen=True)
class Contestant:
    name: str
    title: str
    tasks: tuple
    precisions: tuple = ("f32", "bf16")
    devices: tuple = ("cpu",)

    def takes(self, case):
        return case.task in self.tasks and case.precision in self.precisions and case.device in self.devices


OURS = "ours"
CONTESTANTS = [
    Contestant(OURS, "libdiffusion", ("step", "ddim", "train"), devices=("cpu", "cuda")),
    Contestant("openvino", "OpenVINO", ("step", "ddim")),
    Contestant("onnxruntime", "ONNX Runtime", ("step", "ddim"), precisions=("f32",)),
    Contestant("torch", "PyTorch", ("step", "ddim", "train"), devices=("cpu", "cuda")),
    Contestant("torch-compile", "torch.compile", ("train",)),
    Contestant("torch-compile", "torch.compile", ("step", "ddim", "train"), devices=("cuda",)),
]
