#include "plan.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "packed.h"
#include "team.h"

namespace diffusion {
namespace {

int padded(int channels) {
    return (channels + lane - 1) / lane * lane;
}

// Images in [pixel][channel]; each part of the channels is padded by itself.
struct Buffer {
    int height, width;
    std::vector<int> parts;
    int first_use = 0, last_use = 0;
    size_t offset = 0;  // floats for each image

    int pixels() const { return height * width; }
    int channels() const {
        int sum = 0;
        for (int part : parts)
            sum += padded(part);
        return sum;
    }
    int real_channels() const {
        int sum = 0;
        for (int part : parts)
            sum += part;
        return sum;
    }
    int64_t floats() const { return int64_t{pixels()} * channels(); }
};

// Where each channel of some parts is when they are padded.
std::vector<int> places(const std::vector<int> &parts) {
    std::vector<int> result;
    int begin = 0;
    for (int part : parts) {
        for (int c = 0; c < part; c++)
            result.push_back(begin + c);
        begin += padded(part);
    }
    return result;
}

Floats copy_padded(const float *values, const std::vector<int> &parts) {
    const auto where = places(parts);
    int whole = 0;
    for (int part : parts)
        whole += padded(part);
    Floats result(whole);
    for (size_t c = 0; c < where.size(); c++)
        result[where[c]] = values[c];
    return result;
}

// What a run is about.
struct Run {
    int images;
    int capacity;  // images that the arena is made for
    float *arena;
    float *lifted, *products, *partial;
    const float *x;
    const float *embedding;
    int rows;
    const int32_t *row;
    float *added;
    float *out;
    const float *zeros;
};

struct Plan;

struct Step {
    std::vector<plan_buffer> reads;
    plan_buffer writes = -1;
    virtual ~Step() = default;
    virtual void run(const Plan &plan, const Run &run, Team &team, int thread, float *scratch) const = 0;
    virtual size_t weights() const { return 0; }
};

struct Projection {
    std::vector<float> weight, bias;  // [channels, width], [channels], padded
    int offset, channels;
};

struct Plan {
    const Kernels &set = kernels();
    int embedding_width = 0;
    WeightType weight_type = WeightType::F32;
    std::vector<Buffer> buffers;
    std::vector<std::unique_ptr<Step>> steps;
    std::vector<Projection> projections;
    int added_width = 0;
    Packed added_weights;
    Floats added_bias;
    plan_buffer input = -1, result = -1;
    size_t arena_per_image = 0, partial_per_image = 0, lifted = 0, products = 0, scratch = 0;
    int most_channels = lane;
    // Made for a number of images and of threads.
    Floats arena, partial, lifted_memory, products_memory, scratch_memory, added, embedding, zeros;
    int capacity = 0;

    float *at(const Run &run, plan_buffer buffer) const {
        return run.arena + buffers[buffer].offset * run.capacity;
    }
    plan_buffer add(Buffer buffer) {
        buffers.push_back(std::move(buffer));
        most_channels = std::max(most_channels, buffers.back().channels());
        return static_cast<plan_buffer>(buffers.size() - 1);
    }
};

// Images that pass through the plan together: enough that a matrix product has rows to share its weights, and
// no more, so that the arena stays in the cache.
constexpr int most_images = 8;
// Tiles that are lifted together, for the same reasons.
constexpr int enough_tiles = 64;
// Floats between the matrices of a lifting: an odd number of cache lines, since they are written side by side
// and would otherwise all fall into one set of the cache.
int64_t plane_stride(int64_t tiles, int channels) {
    const int64_t lines = (tiles * channels + 15) / 16;
    return (lines | 1) * 16;
}

// The source pixel of an output pixel and tap, or -1.
struct Window {
    int height, width, stride, pad;
    bool doubled;
    int pixel(int y, int x) const {
        const int grow = doubled ? 2 : 1;
        if (y < 0 || x < 0 || y >= height * grow || x >= width * grow) return -1;
        return (y / grow) * width + x / grow;
    }
};

struct Common {
    Floats bias;
    int32_t projection = -1;
    plan_buffer residual = -1;
    float scale = 1;

    Epilogue epilogue(const Plan &plan, const Run &run, plan_buffer out, int first_image) const {
        const Buffer &buffer = plan.buffers[out];
        Epilogue end{};
        end.out = plan.at(run, out) + first_image * buffer.floats();
        end.out_image = buffer.floats();
        end.bias = bias.data();
        if (projection >= 0) {
            end.added = run.added + plan.projections[projection].offset;
            end.added_stride = plan.added_width;
            end.added_row = run.row + first_image;
        }
        if (residual >= 0) {
            end.residual = plan.at(run, residual) + first_image * buffer.floats();
        }
        end.scale = scale;
        return end;
    }
};

// Any convolution, as one matrix product over taps and channels.
struct DirectConv : Step {
    Common common;
    Packed packed;
    // [source][tap][pixel of the output]
    std::vector<std::vector<std::vector<int32_t>>> offsets;

    size_t weights() const override { return packed.size(); }
    void run(const Plan &plan, const Run &run, Team &team, int thread, float *) const override {
        const Buffer &out = plan.buffers[writes];
        Source sources[2 * 9];
        int count = 0;
        for (size_t s = 0; s < offsets.size(); s++) {
            const Buffer &buffer = plan.buffers[reads[s]];
            for (const auto &tap : offsets[s])
                sources[count++] = {plan.at(run, reads[s]), buffer.floats(),
                                    tap.empty() ? nullptr : tap.data(), buffer.channels()};
        }
        const Epilogue end = common.epilogue(plan, run, writes, 0);
        const Product product = {sources,       count,          out.pixels(),   run.zeros, packed.matrix(0),
                                 packed.type(), packed.depth(), out.channels(), &end,      nullptr};
        const int rows = run.images * out.pixels(), panels = packed.panels();
        if (rows >= 64 * team.size) {
            const Share share(rows, thread, team.size);
            plan.set.multiply(product, int(share.begin), int(share.count), 0, panels);
        } else {
            const Share share(panels, thread, team.size);
            plan.set.multiply(product, 0, rows, int(share.begin), int(share.count));
        }
        team.wait();
    }
};

struct LiftedConv : Step {
    Common common;
    Lifting way;
    Packed packed;  // [points * points]
    std::vector<int32_t> lift_offsets, lower_offsets;
    int tiles = 0;   // of an image
    int images = 0;  // at a time

    size_t weights() const override { return packed.size(); }
    void run(const Plan &plan, const Run &run, Team &team, int thread, float *) const override {
        const Buffer &in = plan.buffers[reads[0]], &out = plan.buffers[writes];
        const int matrices = lifting_shape(way).points * lifting_shape(way).points;
        for (int first = 0; first < run.images; first += images) {
            const int now = std::min(images, run.images - first), all = now * tiles;
            const int64_t lifted_plane = plane_stride(all, in.channels()),
                          plane = plane_stride(all, out.channels());
            const Share share(all, thread, team.size);
            const Lift lift = {plan.at(run, reads[0]) + first * in.floats(),
                               in.floats(),
                               lift_offsets.data(),
                               tiles,
                               in.channels(),
                               run.zeros,
                               run.lifted,
                               lifted_plane};
            plan.set.lift(way, lift, int(share.begin), int(share.count));
            team.wait();
            // Consecutive panels of consecutive matrices: each weight is read by one thread.
            const int panels = packed.panels();
            const Share work(int64_t{matrices} * panels, thread, team.size);
            for (int64_t item = work.begin; item < work.begin + work.count;) {
                const int matrix = int(item / panels), panel = int(item % panels);
                const int some = int(std::min<int64_t>(panels - panel, work.begin + work.count - item));
                const Source source = {run.lifted + matrix * lifted_plane, 0, nullptr, in.channels()};
                const Product product = {&source,
                                         1,
                                         all,
                                         nullptr,
                                         packed.matrix(matrix),
                                         packed.type(),
                                         packed.depth(),
                                         out.channels(),
                                         nullptr,
                                         run.products + matrix * plane};
                plan.set.multiply(product, 0, all, panel, some);
                item += some;
            }
            team.wait();
            const Lower lower = {run.products, plane,          lower_offsets.data(),
                                 tiles,        out.channels(), common.epilogue(plan, run, writes, first)};
            plan.set.lower(way, lower, int(share.begin), int(share.count));
            // The next tiles are lifted while others are still lowering: they use different memory.
        }
        team.wait();
    }
};

struct NormStep : Step {
    Floats weight, bias;
    std::vector<int32_t> group_of;
    int groups = 0, group_size = 0;
    double eps = 0;
    bool silu = false;
    int32_t projection = -1;

    void run(const Plan &plan, const Run &run, Team &team, int thread, float *scratch) const override {
        Norm norm{};
        for (size_t s = 0; s < reads.size(); s++) {
            const Buffer &buffer = plan.buffers[reads[s]];
            norm.sources[s] = {plan.at(run, reads[s]), buffer.floats(), buffer.channels()};
        }
        const Buffer &out = plan.buffers[writes];
        norm.pixels = out.pixels();
        norm.group_of = group_of.data();
        norm.groups = groups;
        norm.group_size = group_size;
        norm.eps = eps;
        norm.weight = weight.data();
        norm.bias = bias.data();
        if (projection >= 0) {
            norm.added = run.added + plan.projections[projection].offset;
            norm.added_stride = plan.added_width;
            norm.added_row = run.row;
        }
        norm.silu = silu;
        norm.partial = run.partial;
        norm.out = plan.at(run, writes);
        norm.out_image = out.floats();
        const Share blocks(int64_t{run.images} * norm.blocks(), thread, team.size);
        plan.set.norm_statistics(norm, int(blocks.begin), int(blocks.count));
        team.wait();
        const Share pixels(int64_t{run.images} * norm.pixels, thread, team.size);
        plan.set.norm_apply(norm, pixels.begin, pixels.count, scratch);
        team.wait();
    }
};

struct AttentionStep : Step {
    int heads, head_dim;

    void run(const Plan &plan, const Run &run, Team &team, int thread, float *scratch) const override {
        const Buffer &in = plan.buffers[reads[0]], &out = plan.buffers[writes];
        const Attention attention = {
            plan.at(run, reads[0]), in.floats(),  in.channels(), heads, head_dim, in.pixels(),
            plan.at(run, writes),   out.floats(), out.channels()};
        const int blocks = (in.pixels() + plan.set.queries - 1) / plan.set.queries;
        const Share share(int64_t{run.images} * heads * blocks, thread, team.size);
        plan.set.attend(attention, int(share.begin), int(share.count), scratch);
        team.wait();
    }
};

// [channel][pixel] -> [pixel][channel]
struct InputStep : Step {
    void run(const Plan &plan, const Run &run, Team &team, int thread, float *) const override {
        const Buffer &out = plan.buffers[writes];
        const int real = out.real_channels(), channels = out.channels(), pixels = out.pixels();
        const Share share(int64_t{run.images} * pixels, thread, team.size);
        for (int64_t i = share.begin; i < share.begin + share.count; i++) {
            const float *from = run.x + i / pixels * pixels * real + i % pixels;
            float *to = plan.at(run, writes) + i * channels;
            for (int c = 0; c < channels; c++)
                to[c] = c < real ? from[int64_t{c} * pixels] : 0.0f;
        }
        team.wait();
    }
};

struct OutputStep : Step {
    void run(const Plan &plan, const Run &run, Team &team, int thread, float *) const override {
        const Buffer &in = plan.buffers[reads[0]];
        const int real = in.real_channels(), channels = in.channels(), pixels = in.pixels();
        const Share share(int64_t{run.images} * pixels, thread, team.size);
        for (int64_t i = share.begin; i < share.begin + share.count; i++) {
            const float *from = plan.at(run, reads[0]) + i * channels;
            float *to = run.out + i / pixels * pixels * real + i % pixels;
            for (int c = 0; c < real; c++)
                to[int64_t{c} * pixels] = from[c];
        }
        team.wait();
    }
};

void require(bool fits, const char *what) {
    if (!fits) throw std::invalid_argument(std::string("the inference plan: ") + what);
}

Buffer &buffer_at(Plan &plan, plan_buffer buffer) {
    require(buffer >= 0 && size_t(buffer) < plan.buffers.size(), "no such buffer");
    return plan.buffers[buffer];
}

// A convolution's weights [outputs][inputs][taps] and where its channels are when they are padded.
struct ConvShape {
    const plan_conv &conv;
    std::vector<plan_buffer> reads;
    std::vector<int> parts;  // of all that is read
    Buffer in, out;
    int inputs = 0, depth = 0, taps;

    ConvShape(Plan &plan, const plan_conv &conv) : conv(conv), taps(conv.kernel * conv.kernel) {
        require(conv.kernel == 1 || conv.kernel == 3, "a kernel of 1 or 3");
        reads = {conv.source};
        if (conv.second >= 0) reads.push_back(conv.second);
        in = buffer_at(plan, conv.source);
        for (plan_buffer read : reads) {
            const Buffer &buffer = buffer_at(plan, read);
            require(buffer.height == in.height && buffer.width == in.width, "sources of one size");
            parts.insert(parts.end(), buffer.parts.begin(), buffer.parts.end());
            inputs += buffer.real_channels();
            depth += buffer.channels();
        }
        const auto side = [&](int n) {
            return (n * (conv.doubled ? 2 : 1) + conv.pad_begin + conv.pad_end - conv.kernel) / conv.stride +
                   1;
        };
        out = Buffer{side(in.height), side(in.width), {conv.outputs}};
        require(out.height > 0 && out.width > 0 && out.pixels() < (1 << 24), "an image of some size");
    }
    const float *weight(int output, int input) const {
        return conv.weight + (size_t(output) * inputs + input) * taps;
    }
};

// U = G g G^T for one input channel and a panel of outputs, in f64 since it is done once.
void lift_weights(const LiftingShape &lifting, const ConvShape &shape, int input, int panel, int wide,
                  int first, Packed &packed, int k) {
    constexpr int widest = 2 * lane;
    require(wide <= widest, "a panel of that width");
    const int P = lifting.points;
    double g[9][widest] = {}, half[6][3][widest];
    float lifted[widest];
    for (int o = 0; o < std::min(wide, shape.conv.outputs - first); o++)
        for (int tap = 0; tap < 9; tap++)
            g[tap][o] = shape.weight(first + o, input)[tap];
    for (int p = 0; p < P; p++)
        for (int x = 0; x < 3; x++)
            for (int o = 0; o < wide; o++)
                half[p][x][o] = lifting.weights[p][0] * g[x][o] + lifting.weights[p][1] * g[3 + x][o] +
                                lifting.weights[p][2] * g[6 + x][o];
    for (int p = 0; p < P; p++) {
        for (int q = 0; q < P; q++) {
            for (int o = 0; o < wide; o++)
                lifted[o] =
                    float(half[p][0][o] * lifting.weights[q][0] + half[p][1][o] * lifting.weights[q][1] +
                          half[p][2][o] * lifting.weights[q][2]);
            packed.put(p * P + q, panel, k, lifted);
        }
    }
}

std::unique_ptr<LiftedConv> lifted_conv(Plan &plan, const ConvShape &shape) {
    const bool doubled = shape.conv.doubled;
    const Buffer &in = shape.in, &out = shape.out;
    auto made = std::make_unique<LiftedConv>();
    made->way = doubled ? Lifting::Doubled : in.pixels() >= 144 ? Lifting::F4 : Lifting::F2;
    const LiftingShape &lifting = lifting_shape(made->way);
    const int P = lifting.points, Q = lifting.outputs;
    const int across = (out.width + Q - 1) / Q, down = (out.height + Q - 1) / Q;
    made->tiles = across * down;
    made->images = std::min(most_images, std::max(1, enough_tiles / made->tiles));
    for (int t = 0; t < made->tiles; t++) {
        const int top = t / across * Q, left = t % across * Q;
        for (int i = 0; i < P * P; i++) {
            // A doubled image is read from the small one, whose pixels are one row of taps apart.
            const int y = (doubled ? top / 2 : top) + i / P - 1, x = (doubled ? left / 2 : left) + i % P - 1;
            const bool inside = y >= 0 && x >= 0 && y < in.height && x < in.width;
            made->lift_offsets.push_back(inside ? (y * in.width + x) * in.channels() : -1);
        }
        for (int i = 0; i < Q * Q; i++) {
            const int y = top + i / Q, x = left + i % Q;
            const bool inside = y < out.height && x < out.width;
            made->lower_offsets.push_back(inside ? (y * out.width + x) * out.channels() : -1);
        }
    }
    made->packed = Packed(plan.set, plan.weight_type, shape.depth, out.channels(), P * P);
    const auto where = places(shape.parts);
    const int panel = plan.set.panel;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < shape.inputs; k++)
        for (int p = 0; p < made->packed.panels(); p++)
            lift_weights(lifting, shape, k, p, panel, p * panel, made->packed, where[k]);
    const int all = made->tiles * made->images;
    plan.lifted = std::max(plan.lifted, size_t(P * P * plane_stride(all, in.channels())));
    plan.products = std::max(plan.products, size_t(P * P * plane_stride(all, out.channels())));
    return made;
}

std::unique_ptr<DirectConv> direct_conv(Plan &plan, const ConvShape &shape) {
    const plan_conv &conv = shape.conv;
    const Buffer &in = shape.in, &out = shape.out;
    const Window window{in.height, in.width, conv.stride, conv.pad_begin, conv.doubled};
    const int taps = shape.taps, panel = plan.set.panel;
    // Each pixel is made of the one in its own place.
    const bool even = taps == 1 && conv.stride == 1 && conv.pad_begin == 0 && !conv.doubled;
    auto made = std::make_unique<DirectConv>();
    made->packed = Packed(plan.set, plan.weight_type, shape.depth * taps, out.channels(), 1);
    int first = 0, begin = 0;
    for (plan_buffer read : shape.reads) {
        const Buffer &buffer = plan.buffers[read];
        made->offsets.emplace_back(taps);
        for (int tap = 0; tap < taps && !even; tap++) {
            for (int pixel = 0; pixel < out.pixels(); pixel++) {
                const int y = pixel / out.width * conv.stride + tap / conv.kernel - conv.pad_begin;
                const int x = pixel % out.width * conv.stride + tap % conv.kernel - conv.pad_begin;
                const int from = window.pixel(y, x);
                made->offsets.back()[tap].push_back(from < 0 ? -1 : from * buffer.channels());
            }
        }
        const auto within = places(buffer.parts);
#pragma omp parallel for schedule(static)
        for (int p = 0; p < made->packed.panels(); p++) {
            std::vector<float> row(panel);
            const int wide = std::min(panel, conv.outputs - p * panel);
            for (int c = 0; c < int(within.size()); c++) {
                for (int tap = 0; tap < taps; tap++) {
                    for (int o = 0; o < wide; o++)
                        row[o] = shape.weight(p * panel + o, first + c)[tap];
                    made->packed.put(0, p, begin + tap * buffer.channels() + within[c], row.data());
                }
            }
        }
        first += int(within.size());
        begin += taps * buffer.channels();
    }
    return made;
}

plan_buffer add_conv(Plan &plan, const plan_conv &conv) {
    const ConvShape shape(plan, conv);
    Common common;
    common.bias = copy_padded(conv.bias, {conv.outputs});
    common.projection = conv.projection;
    common.residual = conv.residual;
    common.scale = conv.scale;
    if (conv.residual >= 0) {
        const Buffer &residual = buffer_at(plan, conv.residual);
        require(residual.floats() == shape.out.floats() && residual.parts == shape.out.parts,
                "a residual of the result's shape");
    }
    const bool same = conv.kernel == 3 && conv.stride == 1 && conv.pad_begin == 1 && conv.pad_end == 1;
    const auto add = [&](auto step) {
        step->common = std::move(common);
        step->reads = shape.reads;
        if (conv.residual >= 0) step->reads.push_back(conv.residual);
        step->writes = plan.add(shape.out);
        plan.steps.push_back(std::move(step));
    };
    // Of small images the tiles would be mostly padding.
    if (same && conv.second < 0 && (conv.doubled || shape.in.pixels() >= 36))
        add(lifted_conv(plan, shape));
    else
        add(direct_conv(plan, shape));
    return plan.steps.back()->writes;
}

plan_buffer add_norm(Plan &plan, const plan_norm &norm) {
    auto step = std::make_unique<NormStep>();
    step->reads = {norm.source};
    if (norm.second >= 0) step->reads.push_back(norm.second);
    Buffer out{buffer_at(plan, norm.source).height, plan.buffers[norm.source].width, {}};
    for (plan_buffer read : step->reads) {
        const Buffer &buffer = buffer_at(plan, read);
        require(buffer.pixels() == out.pixels(), "sources of one size");
        out.parts.insert(out.parts.end(), buffer.parts.begin(), buffer.parts.end());
    }
    const int real = out.real_channels();
    step->weight = copy_padded(norm.weight, out.parts);
    step->bias = copy_padded(norm.bias, out.parts);
    step->groups = norm.groups;
    step->group_size = real / norm.groups;
    step->group_of.assign(out.channels(), -1);
    const auto where = places(out.parts);
    for (int c = 0; c < real; c++)
        step->group_of[where[c]] = c / step->group_size;
    step->eps = norm.eps;
    step->silu = norm.silu;
    step->projection = norm.projection;
    const size_t blocks = (out.pixels() + norm_block - 1) / norm_block;
    plan.partial_per_image = std::max(plan.partial_per_image, blocks * 2 * out.channels());
    plan.scratch = std::max(plan.scratch, size_t(2 * out.channels() + 4 * norm.groups));
    step->writes = plan.add(out);
    plan.steps.push_back(std::move(step));
    return plan.steps.back()->writes;
}

plan_buffer add_attention(Plan &plan, plan_buffer qkv, int heads, int head_dim) {
    auto step = std::make_unique<AttentionStep>();
    const Buffer &in = buffer_at(plan, qkv);
    require(in.real_channels() == 3 * heads * head_dim && in.parts.size() == 1, "q, k and v side by side");
    step->reads = {qkv};
    step->heads = heads;
    step->head_dim = head_dim;
    plan.scratch = std::max(plan.scratch, attention_scratch(plan.set, in.pixels(), head_dim));
    step->writes = plan.add(Buffer{in.height, in.width, {heads * head_dim}});
    plan.steps.push_back(std::move(step));
    return plan.steps.back()->writes;
}

// Gives every buffer a place in the arena that no buffer has which is in use at the same time.
void place_buffers(Plan &plan) {
    for (size_t s = 0; s < plan.steps.size(); s++) {
        for (plan_buffer read : plan.steps[s]->reads)
            plan.buffers[read].last_use = int(s);
        if (plan.steps[s]->writes >= 0) {
            Buffer &buffer = plan.buffers[plan.steps[s]->writes];
            buffer.first_use = buffer.last_use = int(s);
        }
    }
    std::vector<Buffer *> order, placed;
    for (Buffer &buffer : plan.buffers)
        order.push_back(&buffer);
    std::stable_sort(order.begin(), order.end(),
                     [](const Buffer *a, const Buffer *b) { return a->floats() > b->floats(); });
    for (Buffer *buffer : order) {
        std::vector<Buffer *> rivals;
        for (Buffer *other : placed)
            if (other->first_use <= buffer->last_use && buffer->first_use <= other->last_use)
                rivals.push_back(other);
        std::sort(rivals.begin(), rivals.end(),
                  [](const Buffer *a, const Buffer *b) { return a->offset < b->offset; });
        size_t offset = 0;
        for (Buffer *rival : rivals) {
            if (offset + buffer->floats() <= rival->offset) break;
            offset = std::max<size_t>(offset, rival->offset + rival->floats());
        }
        buffer->offset = offset;
        placed.push_back(buffer);
        plan.arena_per_image = std::max<size_t>(plan.arena_per_image, offset + buffer->floats());
    }
}

void finish(Plan &plan, plan_buffer result) {
    buffer_at(plan, result);
    plan.result = result;
    auto step = std::make_unique<OutputStep>();
    step->reads = {result};
    plan.steps.push_back(std::move(step));
    place_buffers(plan);
    // All projections as one matrix.
    const int depth = padded(plan.embedding_width);
    const int columns = std::max(plan.added_width, lane), panel = plan.set.panel;
    plan.added_weights = Packed(plan.set, WeightType::F32, depth, columns, 1);
    plan.added_bias = Floats(std::max(plan.added_width, lane));
    std::vector<const float *> rows(columns, nullptr);
    for (const Projection &projection : plan.projections) {
        for (int c = 0; c < projection.channels; c++) {
            plan.added_bias[projection.offset + c] = projection.bias[c];
            rows[projection.offset + c] = &projection.weight[size_t(c) * plan.embedding_width];
        }
    }
    std::vector<float> row(panel);
    for (int p = 0; p < plan.added_weights.panels(); p++) {
        for (int k = 0; k < plan.embedding_width; k++) {
            for (int o = 0; o < std::min(panel, columns - p * panel); o++) {
                const float *from = rows[p * panel + o];
                row[o] = from == nullptr ? 0.0f : from[k];
            }
            plan.added_weights.put(0, p, k, row.data());
        }
    }
    for (Projection &projection : plan.projections)
        projection.weight = projection.bias = {};
    plan.zeros = Floats(std::max(plan.most_channels, depth));
    plan.lifted_memory = Floats(plan.lifted);
    plan.products_memory = Floats(plan.products);
}

void project(const Plan &plan, const Run &run, Team &team, int thread) {
    const int depth = padded(plan.embedding_width);
    const Source source = {run.embedding, depth, nullptr, depth};
    Epilogue end{};
    end.out = run.added;
    end.out_image = plan.added_width;
    end.bias = plan.added_bias.data();
    end.scale = 1;
    const Packed &packed = plan.added_weights;
    const Product product = {
        &source, 1, 1, run.zeros, packed.matrix(0), packed.type(), depth, plan.added_width, &end, nullptr};
    const Share share((plan.added_width + plan.set.panel - 1) / plan.set.panel, thread, team.size);
    if (plan.added_width > 0) plan.set.multiply(product, 0, run.rows, int(share.begin), int(share.count));
}

void run_plan(Plan &plan, const float *x, int batch, const float *embedding, int rows, const int32_t *row,
              float *out) {
    require(plan.result >= 0, "finished before it runs");
    const Buffer &in = plan.buffers[plan.input], &result = plan.buffers[plan.result];
    const int threads = omp_get_max_threads();
    const int capacity = std::max(plan.capacity, std::min(batch, most_images));
    const size_t scratch = (plan.scratch + 15) / 16 * 16;
    plan.arena.grow(plan.arena_per_image * capacity);
    plan.partial.grow(plan.partial_per_image * capacity);
    plan.scratch_memory.grow(scratch * threads);
    plan.added.grow(size_t(plan.added_width) * rows);
    plan.capacity = capacity;
    const int depth = padded(plan.embedding_width);
    plan.embedding.grow(size_t(depth) * rows);
    for (int r = 0; r < rows; r++)
        std::memcpy(plan.embedding.data() + size_t(r) * depth, embedding + size_t(r) * plan.embedding_width,
                    plan.embedding_width * sizeof(float));
    Run base{};
    base.capacity = capacity;
    base.arena = plan.arena.data();
    base.lifted = plan.lifted_memory.data();
    base.products = plan.products_memory.data();
    base.partial = plan.partial.data();
    base.embedding = plan.embedding.data();
    base.rows = rows;
    base.added = plan.added.data();
    base.zeros = plan.zeros.data();
    std::unique_ptr<Team> team;
#pragma omp parallel
    {
#pragma omp single
        team = std::make_unique<Team>(omp_get_num_threads());
        const int thread = omp_get_thread_num();
        project(plan, base, *team, thread);
        team->wait();
        for (int first = 0; first < batch; first += most_images) {
            Run run = base;
            run.images = std::min(most_images, batch - first);
            run.x = x + int64_t{first} * in.pixels() * in.real_channels();
            run.out = out + int64_t{first} * result.pixels() * result.real_channels();
            run.row = row + first;
            for (const auto &step : plan.steps)
                step->run(plan, run, *team, thread, plan.scratch_memory.data() + thread * scratch);
        }
    }
}

template <typename Body>
char *guarded(Body body) noexcept {
    try {
        body();
        return nullptr;
    } catch (const std::bad_alloc &) {
        return strdup("out of memory: the inference plan");
    } catch (const std::exception &error) {
        return strdup(error.what());
    }
}

}  // namespace
}  // namespace diffusion

struct diffusion_plan : diffusion::Plan {};

using namespace diffusion;

char *diffusion_plan_new(int32_t embedding_width, bool bf16, diffusion_plan **plan) {
    return guarded([&] {
        auto made = std::make_unique<diffusion_plan>();
        made->embedding_width = embedding_width;
        made->weight_type = bf16 ? WeightType::BF16 : WeightType::F32;
        *plan = made.release();
    });
}

void diffusion_plan_free(diffusion_plan *plan) {
    delete plan;
}

char *diffusion_plan_input(diffusion_plan *plan, int32_t channels, int32_t height, int32_t width,
                           plan_buffer *out) {
    return guarded([&] {
        auto step = std::make_unique<InputStep>();
        *out = plan->input = step->writes = plan->add(Buffer{height, width, {channels}});
        plan->steps.push_back(std::move(step));
    });
}

char *diffusion_plan_projection(diffusion_plan *plan, const float *weight, const float *bias, int32_t parts,
                                int32_t outputs, int32_t *projection) {
    return guarded([&] {
        const std::vector<int> sizes(parts, outputs);
        const auto where = places(sizes);
        const int channels = parts * padded(outputs), width = plan->embedding_width;
        Projection made{std::vector<float>(size_t(channels) * width), std::vector<float>(channels),
                        plan->added_width, channels};
        for (size_t c = 0; c < where.size(); c++) {
            std::memcpy(&made.weight[size_t(where[c]) * width], weight + c * width, width * sizeof(float));
            made.bias[where[c]] = bias[c];
        }
        plan->added_width += channels;
        *projection = int32_t(plan->projections.size());
        plan->projections.push_back(std::move(made));
    });
}

char *diffusion_plan_conv(diffusion_plan *plan, const plan_conv *conv, plan_buffer *out) {
    return guarded([&] { *out = add_conv(*plan, *conv); });
}

char *diffusion_plan_norm(diffusion_plan *plan, const plan_norm *norm, plan_buffer *out) {
    return guarded([&] { *out = add_norm(*plan, *norm); });
}

char *diffusion_plan_attention(diffusion_plan *plan, plan_buffer qkv, int32_t heads, int32_t head_dim,
                               plan_buffer *out) {
    return guarded([&] { *out = add_attention(*plan, qkv, heads, head_dim); });
}

char *diffusion_plan_finish(diffusion_plan *plan, plan_buffer result) {
    return guarded([&] { finish(*plan, result); });
}

char *diffusion_plan_run(diffusion_plan *plan, const float *x, int32_t batch, const float *embedding,
                         int32_t rows, const int32_t *row, float *out) {
    return guarded([&] { run_plan(*plan, x, batch, embedding, rows, row, out); });
}

size_t diffusion_plan_floats(const diffusion_plan *plan) {
    size_t sum = plan->arena.size() + plan->lifted_memory.size() + plan->products_memory.size() +
                 plan->partial.size() + plan->added_weights.size();
    for (const auto &step : plan->steps)
        sum += step->weights();
    return sum;
}
