"""The arithmetic and the traffic of one evaluation of a UNet2DModel, counted on paper from its config.

Floating-point operations are nominal: a multiplication and an addition each count, a convolution is counted as its definition
says. A library that does with fewer (Winograd's algorithm; a doubled image convolved by phases) does more nominal operations a
second than it executes. Traffic is that of layers that each read their input from memory and write their output to it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    name: str
    flops: int  # of one image
    parameters: int
    values: int  # read and written, of one image


def conv(name, inputs, outputs, side, kernel=3, stride=1):
    """A convolution whose output is side x side; its input is stride times as high and wide."""
    pixels = side * side
    parameters = outputs * (inputs * kernel * kernel + 1)
    return Layer(name, 2 * pixels * inputs * outputs * kernel * kernel, parameters, pixels * (inputs * stride**2 + outputs))


def linear(name, inputs, outputs, rows=1):
    return Layer(name, 2 * rows * inputs * outputs, outputs * (inputs + 1), rows * (inputs + outputs))


def norm(name, channels, side):
    """Its additions are not counted: no matrix product, and bound by traffic."""
    return Layer(name, 0, 2 * channels, 2 * channels * side * side)


def resnet(name, inputs, outputs, side, embedding):
    yield norm(f"{name}.norm1", inputs, side)
    yield conv(f"{name}.conv1", inputs, outputs, side)
    yield linear(f"{name}.time_emb_proj", embedding, outputs)
    yield norm(f"{name}.norm2", outputs, side)
    yield conv(f"{name}.conv2", outputs, outputs, side)
    if inputs != outputs:
        yield conv(f"{name}.conv_shortcut", inputs, outputs, side, kernel=1)


def attention(name, channels, side):
    tokens = side * side
    yield norm(f"{name}.group_norm", channels, side)
    for part in ("to_q", "to_k", "to_v"):
        yield linear(f"{name}.{part}", channels, channels, tokens)
    yield Layer(f"{name}.products", 4 * tokens * tokens * channels, 0, 4 * tokens * channels)
    yield linear(f"{name}.to_out.0", channels, channels, tokens)


def layers(config):
    """Every layer with weights, and attention's products, of a config.json's UNet2DModel, in order.

    For the kinds of networks that are measured here: DownBlock2D and AttnDownBlock2D with their opposites, no classes, no
    learned or random time embedding.
    """
    strange = {*config["down_block_types"], *config["up_block_types"]} - {
        "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D",
    }  # fmt: skip
    if strange:
        raise ValueError(f"{', '.join(sorted(strange))}: cannot be counted")
    widths, side, each = config["block_out_channels"], config["sample_size"], config["layers_per_block"]
    embedding = config.get("time_embedding_dim") or 4 * widths[0]
    yield linear("time_embedding.linear_1", widths[0], embedding)
    yield linear("time_embedding.linear_2", embedding, embedding)
    yield conv("conv_in", config["in_channels"], widths[0], side)
    skips, now, last = [widths[0]], widths[0], len(widths) - 1
    for i, (kind, width) in enumerate(zip(config["down_block_types"], widths)):
        for j in range(each):
            yield from resnet(f"down_blocks.{i}.resnets.{j}", now, width, side, embedding)
            if kind.startswith("Attn"):
                yield from attention(f"down_blocks.{i}.attentions.{j}", width, side)
            now = width
            skips.append(now)
        if i < last:
            side //= 2
            yield conv(f"down_blocks.{i}.downsamplers.0.conv", now, now, side, stride=2)
            skips.append(now)
    if config.get("mid_block_type", True):
        yield from resnet("mid_block.resnets.0", now, now, side, embedding)
        if config["add_attention"]:
            yield from attention("mid_block.attentions.0", now, side)
        yield from resnet("mid_block.resnets.1", now, now, side, embedding)
    for i, (kind, width) in enumerate(zip(config["up_block_types"], reversed(widths))):
        for j in range(each + 1):
            yield from resnet(f"up_blocks.{i}.resnets.{j}", now + skips.pop(), width, side, embedding)
            if kind.startswith("Attn"):
                yield from attention(f"up_blocks.{i}.attentions.{j}", width, side)
            now = width
        if i < last:
            side *= 2
            yield conv(f"up_blocks.{i}.upsamplers.0.conv", now, now, side)
    yield norm("conv_norm_out", now, side)
    yield conv("conv_out", now, config["out_channels"], side)


def total(config, batch=1, bytes_each=4, weight_bytes=4):
    """{"flops", "bytes", "parameters"} of one evaluation for a batch: the weights are read once, the rest for each image."""
    every = list(layers(config))
    parameters = sum(layer.parameters for layer in every)
    values = batch * sum(layer.values for layer in every)
    flops = batch * sum(layer.flops for layer in every)
    return {"flops": flops, "bytes": bytes_each * values + weight_bytes * parameters, "parameters": parameters}
