// Training's kernels as functions that autograd knows; see training_ops.h and ../kernels/training.h.

#include "training_ops.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "../kernels/training.h"
#include "guarded.h"

namespace {

using at::Tensor;
using diffusion::training::Convolution;
using diffusion::training::Norm;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor channels_last(const Tensor &x) {
    return x.contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor like(const Tensor &x, at::IntArrayRef size) {
    return at::empty(size, x.options().memory_format(at::MemoryFormat::ChannelsLast));
}

const float *floats(const Tensor &x) {
    return x.const_data_ptr<float>();
}

bool is_bf16(const Tensor &x) {
    TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
                "images must be f32 or bf16, not ", x.scalar_type());
    return x.scalar_type() == at::kBFloat16;
}

struct Convolve : torch::autograd::Function<Convolve> {
    static Convolution shape_of(const Tensor &x, const Tensor &weight) {
        return {x.size(0),
                static_cast<int>(x.size(2)),
                static_cast<int>(x.size(3)),
                static_cast<int>(x.size(1)),
                static_cast<int>(weight.size(0)),
                is_bf16(x),
                at::get_num_threads()};
    }

    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &weight, const Tensor &bias,
                          const std::optional<Tensor> &added, const std::optional<Tensor> &residual) {
        const Tensor images = channels_last(x), filter = weight.contiguous(), plus = bias.contiguous();
        const Convolution shape = shape_of(images, filter);
        const Tensor out = like(images, {shape.images, shape.outputs, shape.height, shape.width});
        const Tensor rows = added ? added->contiguous() : Tensor();
        const Tensor rest = residual ? channels_last(*residual) : Tensor();
        TORCH_CHECK(
            !rest.defined() || (rest.sizes() == out.sizes() && rest.scalar_type() == out.scalar_type()),
            "the residual must be like the output");
        TORCH_CHECK(!rows.defined() || rows.numel() == shape.images * shape.outputs, "a row for each image");
        diffusion::training::convolve(shape, images.const_data_ptr(), floats(filter), floats(plus),
                                      rows.defined() ? floats(rows) : nullptr,
                                      rest.defined() ? rest.const_data_ptr() : nullptr,
                                      out.mutable_data_ptr());
        context->save_for_backward({images, filter});
        context->saved_data["added"] = rows.defined();
        context->saved_data["residual"] = rest.defined();
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const Tensor &images = saved[0], &filter = saved[1];
        const Convolution shape = shape_of(images, filter);
        const Tensor gradient = channels_last(gradients[0]);
        TORCH_CHECK(gradient.scalar_type() == images.scalar_type(), "a gradient in the images' format");
        const Tensor by_images = context->needs_input_grad(0) ? like(images, images.sizes()) : Tensor();
        const Tensor by_filter = at::empty_like(filter);
        const Tensor by_added = at::empty({shape.images, shape.outputs}, filter.options());
        diffusion::training::convolve_backward(
            shape, images.const_data_ptr(), floats(filter), gradient.const_data_ptr(),
            by_images.defined() ? by_images.mutable_data_ptr() : nullptr, by_filter.mutable_data_ptr<float>(),
            by_added.mutable_data_ptr<float>());
        return {by_images, by_filter, by_added.sum(0),
                context->saved_data["added"].toBool() ? by_added : Tensor(),
                context->saved_data["residual"].toBool() ? gradient : Tensor()};
    }
};

struct Normalise : torch::autograd::Function<Normalise> {
    static Norm norm_of(const Tensor &x, int64_t groups, double eps, bool silu) {
        return {x.size(0),
                x.size(2) * x.size(3),
                static_cast<int>(x.size(1)),
                static_cast<int>(groups),
                eps,
                silu,
                is_bf16(x),
                at::get_num_threads()};
    }

    static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &weight, const Tensor &bias,
                          int64_t groups, double eps, bool silu) {
        const Tensor images = channels_last(x), scale = weight.contiguous(), shift = bias.contiguous();
        const Norm norm = norm_of(images, groups, eps, silu);
        const Tensor out = like(images, images.sizes());
        const Tensor statistics = at::empty({norm.images, groups, 2}, scale.options());
        diffusion::training::normalise(norm, images.const_data_ptr(), floats(scale), floats(shift),
                                       out.mutable_data_ptr(), statistics.mutable_data_ptr<float>());
        context->save_for_backward({images, scale, shift, statistics});
        context->saved_data["groups"] = groups;
        context->saved_data["eps"] = eps;
        context->saved_data["silu"] = silu;
        return out;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const variable_list saved = context->get_saved_variables();
        const Tensor &images = saved[0], &scale = saved[1], &shift = saved[2], &statistics = saved[3];
        const Norm norm =
            norm_of(images, context->saved_data["groups"].toInt(), context->saved_data["eps"].toDouble(),
                    context->saved_data["silu"].toBool());
        const Tensor gradient = channels_last(gradients[0]);
        TORCH_CHECK(gradient.scalar_type() == images.scalar_type(), "a gradient in the images' format");
        const Tensor by_images = like(images, images.sizes());
        const Tensor by_scale = at::empty_like(scale), by_shift = at::empty_like(shift);
        diffusion::training::normalise_backward(
            norm, images.const_data_ptr(), floats(scale), floats(shift), floats(statistics),
            gradient.const_data_ptr(), by_images.mutable_data_ptr(), by_scale.mutable_data_ptr<float>(),
            by_shift.mutable_data_ptr<float>());
        return {by_images, by_scale, by_shift, Tensor(), Tensor(), Tensor()};
    }
};

std::optional<Tensor> maybe(tensor given) {
    return given != nullptr ? std::optional<Tensor>(*given) : std::nullopt;
}

}  // namespace

char *diffusion_shim_convolve(tensor x, tensor weight, tensor bias, tensor added, tensor residual,
                              tensor *out) {
    return guarded(
        [&] { *out = new Tensor(Convolve::apply(*x, *weight, *bias, maybe(added), maybe(residual))); });
}

char *diffusion_shim_normalise(tensor x, tensor weight, tensor bias, int64_t groups, double eps, bool silu,
                               tensor *out) {
    return guarded([&] { *out = new Tensor(Normalise::apply(*x, *weight, *bias, groups, eps, silu)); });
}

char *diffusion_shim_channels_last(tensor x, tensor *out) {
    return guarded([&] { *out = new Tensor(channels_last(*x)); });
}
