// Fuzzes diffusion_load: the bytes choose a checkpoint that the library itself has written, and say how it is
// to be damaged: JSON values, keys and text; a safetensors file's length, header, shapes, offsets, number
// types and numbers; files that are missing, cut, empty, links, folders or pipes. What loads must work; what
// does not must say why.

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>

#include "harness.hpp"

namespace fs = std::filesystem;

namespace fuzz {
namespace {

// A folder: file names and what is in them.
using Files = std::map<std::string, std::string>;

const char *const kPlace = "checkpoint";
const std::string kWeights = "unet/diffusion_pytorch_model.safetensors", kUnet = "unet/config.json",
                  kIndex = "model_index.json", kScheduler = "scheduler/scheduler_config.json",
                  kTraining = "training_state.safetensors";

std::string read_file(const fs::path &path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

Files read_folder(const fs::path &folder) {
    Files files;
    for (const auto &entry : fs::recursive_directory_iterator(folder)) {
        if (entry.is_regular_file())
            files[fs::relative(entry.path(), folder).string()] = read_file(entry.path());
    }
    return files;
}

void must(const char *call, int32_t status) {
    check_outcome(call, Outcome(status), statuses(DIFFUSION_OK));
}

Files make_checkpoint(diffusion_config config, bool train, bool export_half) {
    diffusion_process *process = nullptr;
    must("diffusion_create", diffusion_create(&config, &process));
    const float image[3 * 16] = {0.5f, -0.5f};
    const int64_t label = 1;
    const size_t len = size_t(config.channels) * 16;
    for (int step = 0; train && step < 2; step++) {
        must("diffusion_train_step",
             config.num_class_embeds != 0
                 ? diffusion_train_step_with_classes(process, image, len, &label, 1, nullptr)
                 : diffusion_train_step(process, image, len, 1, nullptr));
    }
    must("diffusion_save", export_half ? diffusion_export(process, kPlace, DIFFUSION_PRECISION_F16)
                                       : diffusion_save(process, kPlace));
    must("diffusion_destroy", diffusion_destroy(process));
    Files files = read_folder(kPlace);
    fs::remove_all(kPlace);
    return files;
}

// The same checkpoint as other programs lay it out.
Files in_shards(Files files) {
    files["unet/part-1.safetensors"] = files[kWeights];
    files.erase(kWeights);
    files["unet/diffusion_pytorch_model.safetensors.index.json"] =
        R"({"metadata": {}, "weight_map": {"conv_in.weight": "part-1.safetensors", "conv_in.bias": "part-1.safetensors"}})";
    return files;
}
Files model_alone(const Files &files) {
    return {{"config.json", files.at(kUnet)}, {"diffusion_pytorch_model.safetensors", files.at(kWeights)}};
}

std::vector<Files> make_seeds() {
    diffusion_config plain = tiny_config(), rich = tiny_config();
    rich.hidden_dims_len = 2;
    rich.hidden_dims[1] = 16;
    rich.ema_decay = 0.5;
    rich.num_class_embeds = 3;
    rich.optimizer = DIFFUSION_OPTIMIZER_ADAMW;
    rich.accumulation_steps = 3;
    rich.prediction_type = DIFFUSION_PREDICTION_VELOCITY;
    rich.beta_schedule = DIFFUSION_SCHEDULE_SCALED_LINEAR;
    std::vector<Files> seeds;
    seeds.push_back(make_checkpoint(plain, false, false));
    seeds.push_back(make_checkpoint(rich, true, false));
    seeds.push_back(make_checkpoint(plain, true, true));
    seeds.push_back(in_shards(seeds[0]));
    seeds.push_back(model_alone(seeds[0]));
    return seeds;
}

// --- Damage
// ----------------------------------------------------------------------------------------------------------

std::string nested(size_t depth, bool closed) {
    const bool objects = depth % 2;
    std::string text;
    for (size_t i = 0; i < depth; i++)
        text += objects ? "{\"a\":" : "[";
    if (closed) text += (objects ? "0" : "") + std::string(depth, objects ? '}' : ']');
    return text;
}

std::string choose_value(Bytes &bytes) {
    switch (bytes.below(28)) {
        case 0:
            return nested(bytes.word(3) % 300000, bytes.byte() % 2);
        case 1:
            return nested(100 + bytes.below(60), true);
        case 2:
            return '"' + std::string(bytes.word(2), 'x') + '"';
        case 3:
            return std::to_string(bytes.word());
        case 4:
            return std::to_string(bytes.byte());
        case 5:
            return "[" + std::to_string(bytes.byte()) + "," + std::to_string(bytes.byte()) + "]";
        default:
            return bytes.pick<std::string>({"null",
                                            "true",
                                            "false",
                                            "0",
                                            "-1",
                                            "1",
                                            "1e308",
                                            "1e999",
                                            "-0.0",
                                            "0.5",
                                            "4294967296",
                                            "2147483648",
                                            "9223372036854775807",
                                            "9223372036854775808",
                                            "18446744073709551615",
                                            "18446744073709551616",
                                            "4611686018427387904",
                                            "\"\"",
                                            "\"F32\"",
                                            "\"F64\"",
                                            "\"BF16\"",
                                            "\"U8\"",
                                            "\"../x\"",
                                            "\"/etc/passwd\"",
                                            "\"a/b.safetensors\"",
                                            "\"..\\u0000.safetensors\"",
                                            "[]",
                                            "{}",
                                            "[0,0]",
                                            "[9223372036854775807,2]",
                                            "NaN",
                                            "\"\\ud800\"",
                                            "100000",
                                            "4096"});
    }
}

// Where the values of objects' entries and of lists begin, as far as that can be seen without parsing.
std::vector<size_t> values_in(const std::string &json) {
    std::vector<size_t> values;
    for (size_t i = 0; i < json.size(); i++) {
        if (json[i] != ':' && json[i] != ',' && json[i] != '[') continue;
        size_t begin = i + 1;
        while (begin < json.size() && std::isspace(static_cast<unsigned char>(json[begin])))
            begin++;
        values.push_back(begin);
    }
    return values;
}

// Where the value that begins there ends.
size_t end_of(const std::string &json, size_t begin) {
    size_t end = begin, depth = 0;
    for (bool text = false; end < json.size(); end++) {
        const char c = json[end];
        if (text) {
            if (c == '\\') end++;
            if (c == '"') text = false;
        } else if (c == '"') {
            text = true;
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (c == ']' || c == '}' || c == ',') {
            if (depth == 0) break;
            if (c != ',') depth--;
        }
    }
    return std::min(end, json.size());
}

void damage_json(Bytes &bytes, std::string &json) {
    const auto values = values_in(json);
    switch (bytes.below(10)) {
        case 0:  // any byte
            if (!json.empty()) json[bytes.word(2) % json.size()] = char(bytes.byte());
            return;
        case 1:
            if (!json.empty()) json.erase(bytes.word(2) % json.size(), 1 + bytes.byte());
            return;
        case 2:
            json.insert(bytes.word(2) % (json.size() + 1), choose_value(bytes));
            return;
        case 3:  // another entry, known or not, there already or not
            if (const size_t at = json.find('{'); at != std::string::npos) {
                const std::string name = bytes.pick<std::string>(
                    {"x", "_x", "sample_size", "layers_per_block", "block_out_channels", "trained_betas",
                     "num_train_timesteps", "dropout", "class_embed_type", "num_class_embeds",
                     "norm_num_groups", "attention_head_dim", "thresholding", "dynamic_thresholding_ratio",
                     "__metadata__", "time_embedding_dim", "down_block_types", "_libdiffusion_beta_schedule",
                     "steps_offset"});
                json.insert(at + 1, "\"" + name + "\":" + choose_value(bytes) + ",");
            }
            return;
        case 4:
            json = choose_value(bytes);
            return;
        default:
            if (values.empty()) return;
            const size_t begin = values[bytes.word(2) % values.size()], end = end_of(json, begin);
            // A digit more or less is nearer to right than a value of another kind.
            if (bytes.byte() % 4 == 0 && end > begin) {
                json[begin + bytes.byte() % (end - begin)] = char('0' + bytes.below(10));
            } else {
                json.replace(begin, end - begin, choose_value(bytes));
            }
    }
}

void damage_safetensors(Bytes &bytes, std::string &file) {
    uint64_t length = 0;
    if (file.size() >= 8) std::memcpy(&length, file.data(), 8);
    if (file.size() < 8 || length > file.size() - 8) {
        if (!file.empty()) file[bytes.word(2) % file.size()] = char(bytes.byte());
        return;
    }
    std::string header = file.substr(8, length), numbers = file.substr(8 + length);
    bool fit = true;
    switch (bytes.below(10)) {
        case 0:
            length = bytes.pick<uint64_t>({0, 1, length - 1, length + 1, length + 8, UINT64_MAX,
                                           uint64_t{1} << 63, uint64_t{1} << 32, 100000000, 100000001,
                                           file.size() - 8, file.size(), bytes.word()});
            fit = false;
            break;
        case 1:
            numbers.resize(
                bytes.byte() % 2 ? numbers.size() / (1 + bytes.byte()) : numbers.size() + bytes.byte(), 'x');
            break;
        case 2:  // NaN, infinity, anything
            for (int i = 0; i < 4 && numbers.size() >= 8; i++) {
                const uint64_t value =
                    bytes.pick<uint64_t>({0x7fc00000, 0x7f800000, 0xff800000, 0x7e00, 0x7fffffffffffffff,
                                          0x7f7fffff, 0xffffffffffffffff, bytes.word()});
                std::memcpy(numbers.data() + bytes.word(3) % (numbers.size() - 7), &value, 8);
            }
            break;
        case 3:  // a tensor more
            if (!header.empty()) {
                header.insert(
                    1,
                    "\"" +
                        bytes.pick<std::string>({"x", "conv_in.weight", "ema.conv_in.weight", "step", ""}) +
                        "\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[" +
                        std::to_string(numbers.size()) + "," + std::to_string(numbers.size() + 4) + "]},");
                numbers += std::string(4, '\0');
            }
            break;
        case 4:  // a tensor under another name
            if (const auto names = values_in(header); !names.empty()) {
                const size_t at = header.rfind('"', names[bytes.word(2) % names.size()]);
                if (at != std::string::npos && at > 0)
                    header.insert(at, bytes.pick<std::string>({"x", ".weight", "0"}));
            }
            break;
        default:
            damage_json(bytes, header);
    }
    if (fit) length = header.size() + (bytes.once_in(16) ? 1 : 0);
    file.assign(reinterpret_cast<const char *>(&length), 8);
    file += header + numbers;
}

// What is there in the place of a file.
void damage_place(Bytes &bytes, const fs::path &path) {
    std::error_code ignored;
    const auto link_to = [&](const char *target) {
        fs::remove_all(path, ignored);
        fs::create_symlink(target, path, ignored);
    };
    switch (bytes.below(12)) {
        case 0:
            fs::remove_all(path, ignored);
            return;
        case 1:
            fs::remove_all(path, ignored);
            fs::create_directory(path, ignored);
            return;
        case 2:
            return link_to(path.filename().c_str());
        case 3:
            return link_to("/dev/zero");
        case 4:
            return link_to("/dev/null");
        case 5:
            return link_to("missing");
        case 6:
            return link_to("/proc/self/mem");
        case 7:
            fs::remove_all(path, ignored);
            mkfifo(path.c_str(), 0600);
            return;
        case 8:  // a hole of 64 MB: what is not there need not be read as if it were
            if (truncate(path.c_str(), 64 << 20) != 0) return;
            return;
        case 9:
            if (truncate(path.c_str(), off_t(bytes.word(2))) != 0) return;
            return;
        case 10:
            chmod(path.c_str(), 0);
            return;
        default:  // the folder it is in
            fs::remove_all(path.parent_path(), ignored);
            if (bytes.byte() % 2) std::ofstream(path.parent_path()) << "x";
    }
}

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// --- One checkpoint
// ---------------------------------------------------------------------------------------------------

// Whatever a checkpoint that loads has in it, the process that it makes is as good as any.
void use(diffusion_process *process) {
    diffusion_config config;
    config.struct_size = sizeof config;
    must("diffusion_get_config", diffusion_get_config(process, &config));
    const size_t image = size_t(config.channels) * size_t(config.image_size) * size_t(config.image_size);
    if (config.image_size <= 0 || config.channels <= 0 || config.noise_steps <= 0)
        finding("a config of nothing was loaded");
    constexpr Statuses computed = statuses(DIFFUSION_OK, DIFFUSION_ERROR_NON_FINITE);
    if (image <= 1024 && config.layers_per_block <= 4) {
        const int64_t label = 0;
        Memory out(image * 4), in(image * 4);
        std::memset(in.data(), 0, in.size());
        diffusion_sample_params params;
        must("diffusion_sample_params_init", diffusion_sample_params_init(&params));
        params.steps = 1 + (config.noise_steps > 1);
        if (config.num_class_embeds != 0) {
            params.class_labels = &label;
            params.class_labels_len = 1;
        }
        const Outcome sampled(diffusion_sample_with(process, &params, out.data(), out.size()));
        // Zero terminal SNR with a prediction of the noise is the sampler's to refuse.
        check_outcome("diffusion_sample_with of a loaded process", sampled,
                      computed | statuses(DIFFUSION_ERROR_INVALID_ARGUMENT));
        if (sampled.ok() != out.all_written() && !(!sampled.ok() && out.untouched()))
            finding("a half-written image");
        float loss;
        check_outcome(
            "diffusion_train_step of a loaded process",
            Outcome(config.num_class_embeds != 0
                        ? diffusion_train_step_with_classes(process, in.as<float>(), image, &label, 1, &loss)
                        : diffusion_train_step(process, in.as<float>(), image, 1, &loss)),
            computed);
    }
}

void run(Bytes bytes) {
    static const std::vector<Files> seeds = make_seeds();
    Files files = seeds[bytes.byte() % seeds.size()];
    std::vector<std::string> names;
    for (const auto &file : files)
        names.push_back(file.first);
    bool replaced = false, damaged_place = false;
    const size_t changes = bytes.below(5);
    std::vector<std::pair<std::string, Bytes>> places;
    for (size_t i = 0; i < changes; i++) {
        const std::string name = names[bytes.byte() % names.size()];
        const uint8_t how = bytes.byte();
        if (how >= 240) {
            damaged_place = true;
            places.emplace_back(name, bytes);
            bytes.word(4);
        } else if (how >= 224) {  // another file's content
            files[name] = files[names[bytes.byte() % names.size()]];
        } else if (how >= 216) {
            files[bytes.pick<std::string>({kTraining, kIndex, kScheduler, kUnet, kWeights, "config.json",
                                           "unet/diffusion_pytorch_model.safetensors.index.json",
                                           "unet/diffusion_pytorch_model.fp16.safetensors",
                                           "unet/diffusion_pytorch_model.bin"})] = files[name];
        } else if (ends_with(name, ".json")) {
            damage_json(bytes, files[name]);
        } else {
            damage_safetensors(bytes, files[name]);
        }
        replaced = true;
    }
    for (const auto &[name, content] : files) {
        const fs::path path = fs::path(kPlace) / name;
        fs::create_directories(path.parent_path());
        std::ofstream(path, std::ios::binary).write(content.data(), std::streamsize(content.size()));
    }
    for (auto &[name, how] : places)
        damage_place(how, fs::path(kPlace) / name);

    diffusion_process *process = nullptr;
    const Outcome outcome(diffusion_load(kPlace, nullptr, &process));
    // A small file never asks for much memory, and nothing in it is the caller's mistake.
    Statuses allowed = statuses(DIFFUSION_OK);
    if (replaced) allowed |= statuses(DIFFUSION_ERROR_IO, DIFFUSION_ERROR_FORMAT);
    check_outcome("diffusion_load", outcome, allowed);
    if (!outcome.ok() && outcome.message.find(kPlace) == std::string::npos) {
        finding("the message does not name the file: %s", outcome.message.c_str());
    }
    if (outcome.ok()) {
        use(process);
        if (!damaged_place && bytes.byte() % 4 == 0) {
            // Whatever was loaded can be saved, and what was saved can be loaded.
            const Outcome saved(diffusion_save(process, "again"));
            check_outcome("diffusion_save of a loaded process", saved, statuses(DIFFUSION_OK));
            diffusion_process *second = nullptr;
            must("diffusion_load of what was saved", diffusion_load("again", nullptr, &second));
            must("diffusion_destroy", diffusion_destroy(second));
        }
        must("diffusion_destroy", diffusion_destroy(process));
    } else if (process != nullptr) {
        finding("a failed diffusion_load has written a handle");
    }
    for (const auto &entry : fs::directory_iterator("."))
        fs::remove_all(entry.path());
}

}  // namespace
}  // namespace fuzz

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    fuzz::work_folder();
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::run(fuzz::Bytes(data, size));
    return 0;
}
