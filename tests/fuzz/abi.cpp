// Fuzzes the C ABI: the bytes are a list of calls with their arguments, most of them right and some hostile
// (handles that are stale, foreign or made up, lengths, enumerations, NaN, struct sizes, pointers that are
// NULL or odd, paths), some of them two at a time from two threads. Each call is judged by what the header
// says of it.

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "harness.hpp"

namespace fs = std::filesystem;

namespace fuzz {
namespace {

constexpr size_t kProcesses = 3, kJobs = 4;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr Statuses kAll = (2u << DIFFUSION_ERROR_INTERNAL) - 1;
constexpr Statuses kErrors = kAll & ~statuses(DIFFUSION_OK);
// What a sampling call may return that was right in all.
constexpr Statuses kSampled = statuses(DIFFUSION_OK, DIFFUSION_ERROR_NON_FINITE);

// How a call's arguments look to the header: it must succeed, it may be refused, it must be refused.
enum class Verdict { kGood, kMaybe, kBad };

void worsen(Verdict &verdict, Verdict other) {
    verdict = std::max(verdict, other);
}

struct Process {
    diffusion_process *handle = nullptr;  // NULL: the slot was never used
    bool live = false, reserved = false;
    diffusion_config config{};

    size_t image() const {  // floats
        return size_t(config.channels) * size_t(config.image_size) * size_t(config.image_size);
    }
};

// What a progress callback is to do.
struct Callback {
    enum Action { kCount, kCancelJob, kCancelProcess, kDestroyProcess, kDestroyJob, kUseProcess, kActions };
    Action action = kCount;
    uint64_t at = 1;  // the first progress at which it does it
    diffusion_process *process = nullptr;
    std::atomic<diffusion_job *> job{nullptr};
    uint64_t last = 0;
    std::atomic<bool> process_ended{false}, job_ended{false};
};

struct Job {
    diffusion_job *handle = nullptr;
    bool live = false, reserved = false;
    size_t bytes = 0;
    bool endless = false;  // too many images to wait for
    bool floats = false;
    Callback *callback = nullptr;
};

// A call that is ready to be made, on whichever thread.
struct Call {
    const char *name = "";
    Verdict verdict = Verdict::kGood;
    bool dead_handle = false;
    Statuses good = statuses(DIFFUSION_OK);  // what it may return where all is right
    std::function<Outcome()> make;
    std::function<void(const Outcome &)> then;  // checks and book-keeping, on the main thread
};

// Runs one call at a time beside the main thread.
class Helper {
  public:
    Helper() : thread_([this] { loop(); }) {}
    ~Helper() {
        start(nullptr);
        thread_.join();
    }
    void start(std::function<void()> task) {
        std::lock_guard lock(mutex_);
        task_ = std::move(task);
        busy_ = true;
        changed_.notify_all();
    }
    void finish() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !busy_; });
    }

  private:
    void loop() {
        for (;;) {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [this] { return busy_; });
            if (!task_) return;
            lock.unlock();
            task_();
            lock.lock();
            busy_ = false;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::function<void()> task_;
    bool busy_ = false;
    std::thread thread_;
};

int32_t on_progress(uint64_t done, uint64_t total, void *user_data) {
    auto &callback = *static_cast<Callback *>(user_data);
    if (done == 0 || done > total || done < callback.last)
        finding("progress of %lu after %lu of %lu", done, callback.last, total);
    callback.last = done;
    if (done < callback.at) return 0;
    callback.at = UINT64_MAX;
    constexpr Statuses gone =
        statuses(DIFFUSION_OK, DIFFUSION_ERROR_INVALID_HANDLE, DIFFUSION_ERROR_CANCELLED);
    switch (callback.action) {
        case Callback::kCancelJob:
            return 1;
        case Callback::kCancelProcess:
            check_outcome("diffusion_cancel in progress", Outcome(diffusion_cancel(callback.process)), gone);
            return 0;
        case Callback::kDestroyProcess: {
            const Outcome outcome(diffusion_destroy(callback.process));
            check_outcome("diffusion_destroy in progress", outcome, gone);
            if (outcome.ok()) callback.process_ended = true;
            return 0;
        }
        case Callback::kDestroyJob: {
            const Outcome outcome(diffusion_job_destroy(callback.job));
            check_outcome("diffusion_job_destroy in progress", outcome, gone);
            if (outcome.ok()) callback.job_ended = true;
            return 0;
        }
        case Callback::kUseProcess: {
            uint64_t steps = 0;
            check_outcome("diffusion_get_step_count in progress",
                          Outcome(diffusion_get_step_count(callback.process, &steps)), gone);
            return 0;
        }
        default:
            return 0;
    }
}

int on_log_data;

void on_log(int32_t level, const char *message, void *user_data) {
    if (level != DIFFUSION_LOG_WARNING && level != DIFFUSION_LOG_INFO) finding("log of level %d", level);
    if (message == nullptr || message[0] == 0) finding("an empty log message");
    if (user_data != &on_log_data) finding("a log callback with user_data %p", user_data);
    check_outcome("diffusion_cancel in a log callback", Outcome(diffusion_cancel(nullptr)),
                  statuses(DIFFUSION_ERROR_INVALID_ARGUMENT));
}

// An array argument: memory, and pointer and length as they are passed.
template <class T>
struct Array {
    std::shared_ptr<Memory> memory;
    T *pointer = nullptr;
    size_t len = 0;
};

// An array that has to be `need` long; now and then it is not, or is NULL, or odd.
template <class T>
Array<T> make_array(Bytes &bytes, size_t need, Verdict &verdict) {
    Array<T> array;
    array.len = need;
    const uint8_t how = bytes.byte();
    if (how >= 224) {
        array.len = bytes.pick<size_t>({0, 1, need - 1, need + 1, need / 2, need * 2, SIZE_MAX,
                                        SIZE_MAX / sizeof(T), SIZE_MAX / sizeof(T) + 1, size_t{1} << 63});
        if (array.len != need) worsen(verdict, Verdict::kBad);
    }
    const bool odd = how == 223;
    // What is declared is there, but for lengths that nobody has.
    const size_t there = std::min(array.len, std::max<size_t>(need, 4096));
    if (there > size_t{1} << 24) finding("the harness made an array of %zu", there);
    array.memory = std::make_shared<Memory>(there * sizeof(T), odd ? 1 : 0);
    array.pointer = array.memory->template as<T>();
    if (odd && alignof(T) > 1) worsen(verdict, Verdict::kBad);
    if (how == 222) {
        array.pointer = nullptr;
        worsen(verdict, Verdict::kBad);
    }
    return array;
}

// Where one value is to be written.
template <class T>
Array<T> make_out(Bytes &bytes, Verdict &verdict, bool may_be_null = false) {
    Array<T> out;
    const uint8_t how = bytes.byte();
    out.memory = std::make_shared<Memory>(sizeof(T), how == 255 ? 1 : 0);
    out.pointer = out.memory->template as<T>();
    if (how >= 245 && how < 255) {
        out.pointer = nullptr;
        if (!may_be_null) worsen(verdict, Verdict::kBad);
    }
    return out;
}

template <class T>
T value_of(const Array<T> &out) {
    T value;
    std::memcpy(&value, out.memory->data(), sizeof value);
    return value;
}

// Fills an array that must hold finite numbers.
void fill(Bytes &bytes, Array<float> &array, Verdict &verdict) {
    const uint8_t how = bytes.byte();
    const size_t count = array.memory->size() / sizeof(float);
    uint32_t state = how;
    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        float value = how < 32 ? 0.0f : float(state >> 8) / 8388608.0f - 1.0f;
        if (how >= 240) value *= how >= 248 ? 3e38f : 1e-40f;
        std::memcpy(array.memory->data() + 4 * i, &value, 4);
    }
    if (how >= 232 && how < 240 && count > 0) {
        const float bad = bytes.pick({NAN, INFINITY, -INFINITY, -NAN});
        std::memcpy(array.memory->data() + 4 * bytes.below(count), &bad, 4);
        worsen(verdict, Verdict::kBad);
    }
    if (how >= 248) worsen(verdict, Verdict::kMaybe);
}

// Fills an array of whole numbers, each in 0..below; below 0 means that any small number will do.
void fill(Bytes &bytes, Array<int64_t> &array, int64_t below, Verdict &verdict) {
    const size_t count = array.memory->size() / sizeof(int64_t);
    const int64_t first = bytes.byte();
    for (size_t i = 0; i < count; i++) {
        const int64_t value = below > 0 ? (first + int64_t(i)) % below : first;
        std::memcpy(array.memory->data() + 8 * i, &value, 8);
    }
    if (bytes.once_in(16) && count > 0) {
        const int64_t value = bytes.pick<int64_t>(
            {-1, below, INT64_MIN, INT64_MAX, below + 1, int64_t{1} << 32, (1 << 24) + 1, 1 << 24});
        std::memcpy(array.memory->data() + 8 * bytes.below(count), &value, 8);
        const bool wrong = below > 0 ? value < 0 || value >= below : value < 0 || value > 1 << 24;
        worsen(verdict, wrong ? (below > 0 ? Verdict::kBad : Verdict::kMaybe) : Verdict::kGood);
    }
}

// A struct in the caller's memory that is as long as the size that it declares, and what the library can make
// of it: the defaults where the struct is too short to say otherwise.
template <class T>
struct Struct {
    std::shared_ptr<Memory> memory;
    T *pointer = nullptr;
    T seen;
};

template <class T>
Struct<T> make_struct(Bytes &bytes, const T &value, const T &defaults, size_t least, Verdict &verdict) {
    constexpr size_t whole = sizeof(T);
    const uint8_t how = bytes.byte();
    size_t size = whole;
    bool tail = false;
    if (how >= 216) {
        size = bytes.pick<size_t>({0, 1, 4, least - 8, least, least + 8, whole - 8, whole + 4, whole + 8,
                                   whole + 8, whole + 64, 1 << 16, (1 << 16) + 8, 0xFFFFFFF8, bytes.word(2)});
        tail = size > whole && size <= 1 << 16 && bytes.byte() % 2;
        if (size < least || size > 1 << 16 || size % 8 != 0 || tail) worsen(verdict, Verdict::kBad);
    }
    Struct<T> made;
    const size_t there = size > 1 << 16 ? whole : std::max<size_t>(size, 4);
    made.memory = std::make_shared<Memory>(there, how == 215 ? 1 : 0);
    std::memset(made.memory->data(), 0, there);
    std::memcpy(made.memory->data(), &value, std::min(there, whole));
    const uint32_t declared = uint32_t(size);
    std::memcpy(made.memory->data(), &declared, sizeof declared);
    if (tail) made.memory->data()[there - 1 - bytes.below(there - whole)] = 1;
    made.seen = defaults;
    std::memcpy(&made.seen, made.memory->data(), std::min(there, whole));
    made.pointer = reinterpret_cast<T *>(made.memory->data());
    if (how == 214) {
        made.pointer = nullptr;
        worsen(verdict, Verdict::kBad);
    }
    return made;
}

// --- Values of configs
// ----------------------------------------------------------------------------------------------

struct Field {
    size_t offset;
    bool is_double;
    std::vector<double> good, maybe, bad;
};

#define FIELD(name) offsetof(diffusion_config, name)
// "bad" are those that the header rules out whatever the other fields are. None makes the network large.
const std::vector<Field> kFields = {
    {FIELD(image_size), false, {4, 2, 8}, {1, 3, 6}, {0, -1, 4097, INT_MAX, INT_MIN}},
    {FIELD(channels), false, {1, 3, 4, 2}, {64}, {0, -1, 65, INT_MAX, INT_MIN}},
    {FIELD(hidden_dims_len), false, {1}, {2, 3, 8}, {0, -1, 9, INT_MAX, INT_MIN}},
    {FIELD(hidden_dims), false, {8, 16}, {24, 12, 4, 1}, {0, -8, 8193, INT_MAX, INT_MIN}},
    {FIELD(hidden_dims) + 4, false, {8, 16}, {24, 12, 4, 0, -8, INT_MAX}, {}},
    {FIELD(hidden_dims) + 28, false, {0}, {8, -1, INT_MIN}, {}},
    {FIELD(beta_start), true, {1e-4, 1e-3}, {0, 1, 0.999, kNaN, kInfinity, -1, 5e-324, DBL_MAX}, {}},
    {FIELD(beta_end), true, {0.999, 0.5}, {0, 1, 1e-4, kNaN, kInfinity, -1, 5e-324, DBL_MAX}, {}},
    {FIELD(noise_steps), false, {6, 1, 2, 10}, {1000}, {0, -1, 100001, INT_MAX, INT_MIN}},
    {FIELD(beta_schedule), false, {0, 1, 2, 3, 4}, {}, {5, 6, -1, INT_MAX, INT_MIN}},
    {FIELD(prediction_type), false, {0, 1, 2}, {}, {3, -1, INT_MAX, INT_MIN}},
    {FIELD(rescale_betas_zero_snr), false, {0}, {1}, {2, -1, INT_MIN}},
    {FIELD(device), false, {1, 0}, {2}, {3, -1, INT_MAX}},
    {FIELD(device_index), false, {0}, {1, 1023}, {-1, 1024, INT_MIN}},
    {FIELD(num_threads), false, {1, 0, 2}, {}, {-1, 1025, INT_MAX}},
    {FIELD(max_batch), false, {0, 1, 2, 3, 65536}, {}, {-1, 65537, INT_MIN}},
    {FIELD(layers_per_block), false, {1, 2}, {}, {0, -1, 9, INT_MAX}},
    {FIELD(attention_levels), false, {-1, 0, 1}, {2, 3, 4, 255}, {-2, 256, INT_MAX, INT_MIN}},
    {FIELD(attention_head_dim), false, {0, 4, 8, 1}, {3, 16, 8192}, {-1, 8193, INT_MIN}},
    {FIELD(norm_num_groups), false, {0, 1, 2, 8}, {3, 16, 8192}, {-1, 8193, INT_MIN}},
    {FIELD(dropout), true, {0, 0.1, 0.99}, {5e-324}, {1, -0.1, kNaN, kInfinity}},
    {FIELD(optimizer), false, {0, 1}, {}, {2, -1, INT_MAX}},
    {FIELD(mixed_precision), false, {0, 2}, {1}, {3, -1, INT_MIN}},
    {FIELD(learning_rate), true, {1e-4, 0.1}, {1e30, DBL_MAX, 5e-324}, {0, -1, kNaN, kInfinity}},
    {FIELD(adam_beta1), true, {0.9, 0}, {5e-324}, {1, -1, kNaN, kInfinity}},
    {FIELD(adam_beta2), true, {0.999, 0}, {5e-324}, {1, -1, kNaN, kInfinity}},
    {FIELD(adam_epsilon), true, {1e-8, 1}, {5e-324, DBL_MAX}, {0, -1, kNaN, kInfinity}},
    {FIELD(weight_decay), true, {0, 0.01}, {1e30, DBL_MAX}, {-1, kNaN, kInfinity}},
    {FIELD(gradient_clip), true, {0, 1}, {1e-30, DBL_MAX}, {-1, kNaN, kInfinity}},
    {FIELD(ema_decay), true, {0, 0.5, 0.999}, {5e-324}, {1, -1, kNaN, kInfinity}},
    {FIELD(loss), false, {0, 1}, {}, {2, -1, INT_MAX}},
    {FIELD(num_class_embeds), false, {0, 3, -1, 1}, {}, {-2, 1000001, INT_MAX, INT_MIN}},
    {FIELD(huber_delta), true, {1, 0.1}, {1e-300, DBL_MAX}, {0, -1, kNaN, kInfinity}},
    {FIELD(min_snr_gamma), true, {0, 5}, {1e-300, DBL_MAX}, {-1, kNaN, kInfinity}},
};
// 64 bits wide.
const std::vector<Field> kLongFields = {
    {FIELD(warmup_steps), false, {0, 2}, {9e18}, {-1, -9e18}},
    {FIELD(decay_steps), false, {0}, {1, 3, 9e18}, {-1, -9e18}},
    {FIELD(accumulation_steps), false, {1, 2}, {9e18}, {0, -1, -9e18}},
    {FIELD(seed), false, {0, 1, 7, 9e18}, {}, {}},
};
#undef FIELD

void set_field(Bytes &bytes, const Field &field, int width, diffusion_config &config, Verdict &verdict) {
    const uint8_t how = bytes.byte();
    const bool bad = how >= 208 && !field.bad.empty(), maybe = how >= 160 && !bad && !field.maybe.empty();
    const auto &values = bad ? field.bad : maybe ? field.maybe : field.good;
    // Right by itself may be wrong beside another.
    worsen(verdict, bad ? Verdict::kBad : Verdict::kMaybe);
    const double value = values[bytes.below(values.size())];
    if (tracing()) std::fprintf(stderr, "config at offset %zu: %g\n", field.offset, value);
    uint8_t *at = reinterpret_cast<uint8_t *>(&config) + field.offset;
    const int64_t whole = field.is_double ? 0 : int64_t(value);
    std::memcpy(at, field.is_double ? static_cast<const void *>(&value) : &whole,
                field.is_double ? 8 : size_t(width));
}

diffusion_config choose_config(Bytes &bytes, Verdict &verdict) {
    diffusion_config config = tiny_config();
    const uint8_t kind = bytes.byte();
    switch (kind % 8) {  // each of these is right
        case 1:
            config.num_class_embeds = 3;
            break;
        case 2:
            config.num_class_embeds = DIFFUSION_CLASSES_AS_TIMESTEPS;
            config.ema_decay = 0.5;
            break;
        case 3:
            config.prediction_type = DIFFUSION_PREDICTION_VELOCITY;
            config.rescale_betas_zero_snr = 1;
            break;
        case 4:
            config.ema_decay = 0.9;
            config.gradient_clip = 1;
            config.dropout = 0.1;
            config.optimizer = DIFFUSION_OPTIMIZER_ADAMW;
            break;
        case 5:
            config.channels = 3;
            config.hidden_dims_len = 2;
            config.hidden_dims[1] = 16;
            config.loss = DIFFUSION_LOSS_HUBER;
            config.min_snr_gamma = 5;
            config.accumulation_steps = 2;
            break;
        case 6:
            config.mixed_precision = DIFFUSION_PRECISION_BF16;
            config.max_batch = 2;
            break;
        default:
            break;
    }
    std::set<size_t> changed;
    for (size_t changes = kind / 64; changes > 0; changes--) {
        const size_t which = bytes.below(kFields.size() + kLongFields.size());
        if (!changed.insert(which).second) continue;
        if (which < kFields.size()) {
            set_field(bytes, kFields[which], 4, config, verdict);
        } else {
            set_field(bytes, kLongFields[which - kFields.size()], 8, config, verdict);
        }
    }
    return config;
}

// --- The calls
// -------------------------------------------------------------------------------------------------------

class World {
  public:
    explicit World(Bytes &bytes) : bytes_(bytes) {}

    void run() {
        // The first call is worth more if there is something to call.
        run_one(create());
        for (int calls = 0; calls < 48 && !bytes_.empty(); calls++) {
            const uint8_t operation = bytes_.byte();
            if (operation >= 208) {
                run_two();
            } else {
                run_one(decode(operation));
            }
        }
        finish();
    }

  private:
    static Helper &helper() {
        static Helper helper;
        return helper;
    }

    void run_one(Call call) {
        if (!call.make) return;
        judge(call, call.make(), false);
    }

    void run_two() {
        Call first = decode(bytes_.byte()), second = decode(bytes_.byte());
        const unsigned delay = bytes_.byte() % 16;
        if (!first.make || !second.make) return run_one(std::move(first.make ? first : second));
        std::atomic<int> ready{0};
        auto meet = [&ready] {
            ready++;
            while (ready < 2)
                std::this_thread::yield();
        };
        std::unique_ptr<Outcome> outcome;
        helper().start([&] {
            meet();
            outcome = std::make_unique<Outcome>(first.make());
        });
        meet();
        if (delay != 0) usleep(delay * 40);
        const Outcome mine = second.make();
        helper().finish();
        judge(first, *outcome, true);
        judge(second, mine, true);
    }

    void judge(const Call &call, const Outcome &outcome, bool two) {
        constexpr Statuses ended = statuses(DIFFUSION_ERROR_CANCELLED, DIFFUSION_ERROR_INVALID_HANDLE);
        Statuses allowed = call.verdict == Verdict::kGood  ? call.good
                           : call.verdict == Verdict::kBad ? kErrors
                                                           : kAll;
        if (call.dead_handle) allowed = statuses(DIFFUSION_ERROR_INVALID_HANDLE);
        // Two at a time: the other call may have ended what this one works with, or have made what its handle
        // is then.
        if (two) allowed = call.dead_handle ? kAll : allowed | ended;
        check_outcome(call.name, outcome, allowed);
        if (call.then) call.then(outcome);
        for (auto &callback : callbacks_)
            settle(callback);
    }

    // What a progress callback has ended.
    void settle(Callback &callback) {
        if (callback.process_ended.exchange(false)) {
            for (auto &process : processes_) {
                if (process.handle == callback.process) process.live = false;
            }
        }
        if (callback.job_ended.exchange(false)) {
            for (auto &job : jobs_) {
                if (job.handle == callback.job.load()) job.live = false;
            }
        }
    }

    void finish() {
        const bool jobs_first = bytes_.byte() % 2 == 0;
        if (jobs_first) finish_jobs();
        for (auto &process : processes_) {
            if (process.handle == nullptr) continue;
            const Outcome outcome(diffusion_destroy(process.handle));
            check_outcome("the last diffusion_destroy", outcome,
                          process.live ? statuses(DIFFUSION_OK) : statuses(DIFFUSION_ERROR_INVALID_HANDLE));
        }
        if (!jobs_first) finish_jobs();
        if (!written_) return;
        for (const auto &entry : fs::directory_iterator(".")) {
            if (entry.path().filename() != "keep") fs::remove_all(entry.path());
        }
    }

    void finish_jobs() {
        for (auto &job : jobs_) {
            if (job.handle == nullptr) continue;
            check_outcome("the last diffusion_job_destroy", Outcome(diffusion_job_destroy(job.handle)),
                          job.live ? statuses(DIFFUSION_OK) : statuses(DIFFUSION_ERROR_INVALID_HANDLE));
        }
    }

    // --- Handles ---

    template <class Slot, class Handle>
    struct Chosen {
        Handle *handle;
        Slot *slot;  // NULL where the handle is dead
    };

    template <class Handle, class Slots, class Others>
    auto choose(Slots &slots, const Others &others) {
        using Slot = typename Slots::value_type;
        const uint8_t how = bytes_.byte();
        Handle *handle = nullptr;
        if (how < 232) {
            for (size_t i = 0; i < slots.size() && handle == nullptr; i++) {
                Slot &slot = slots[(how + i) % slots.size()];
                if (slot.live) handle = slot.handle;
            }
        } else {
            Slot &slot = slots[how % slots.size()];
            const uint64_t bits = reinterpret_cast<uint64_t>(slot.handle);
            const uint64_t wrong = bytes_.pick<uint64_t>(
                {0, reinterpret_cast<uint64_t>(others[how % others.size()].handle), bits,
                 bits ^ (1ull << bytes_.below(64)), bits + (1ull << 32), bits + (2ull << 32),
                 bits - (2ull << 32), reinterpret_cast<uint64_t>(&slot), UINT64_MAX, bytes_.word()});
            handle = reinterpret_cast<Handle *>(wrong);
        }
        Chosen<Slot, Handle> chosen{handle, nullptr};
        for (auto &slot : slots) {
            if (slot.live && slot.handle == handle) chosen.slot = &slot;
        }
        return chosen;
    }
    auto choose_process() { return choose<diffusion_process>(processes_, jobs_); }
    auto choose_job() { return choose<diffusion_job>(jobs_, processes_); }

    template <class Slots>
    auto *free_slot(Slots &slots) {
        for (auto &slot : slots) {
            if (!slot.live && !slot.reserved) {
                slot.reserved = true;
                return &slot;
            }
        }
        return static_cast<typename Slots::value_type *>(nullptr);
    }

    // What a dead handle's images would have been.
    static const diffusion_config &config_of(const Process *process) {
        static const diffusion_config tiny = tiny_config();
        return process != nullptr ? process->config : tiny;
    }
    static size_t image_of(const Process *process) { return process != nullptr ? process->image() : 16; }

    template <class T>
    static std::function<void(const Outcome &)> writes(Array<T> out, bool floats = true) {
        return [out, floats](const Outcome &outcome) {
            if (!outcome.ok() && !out.memory->untouched()) finding("a failed call has written");
            if (outcome.ok() && out.pointer != nullptr && floats && !out.memory->all_written()) {
                finding("a call that succeeded has not written all");
            }
        };
    }

    // A call whose only argument beside the handle is where one value is to be written.
    template <class T, class Handle, class Chosen>
    Call getter(const char *name, int32_t (*function)(Handle *, T *), Chosen chosen) {
        Call call;
        call.name = name;
        auto out = make_out<T>(bytes_, call.verdict);
        call.dead_handle = chosen.slot == nullptr;
        call.make = [=] { return Outcome(function(chosen.handle, out.pointer)); };
        call.then = writes(out, false);
        return call;
    }

    Call decode(uint8_t operation) {
        switch (operation % 40) {
            case 0:
            case 1:
                return create();
            case 2:
                return load();
            case 3:
                return save();
            case 4:
                return export_();
            case 5:
                return destroy();
            case 6:
                return cancel();
            case 7:
                return get_config();
            case 8:
                return get_schedule();
            case 9:
                return set_log();
            case 10:
            case 11:
                return add_noise();
            case 12:
            case 13:
                return predict();
            case 14:
            case 15:
                return sample_plain();
            case 16:
            case 17:
            case 18:
                return sample_with();
            case 19:
                return sample_size();
            case 20:
            case 21:
            case 22:
                return submit();
            case 23:
                return getter("diffusion_job_poll", diffusion_job_poll, choose_job());
            case 24:
            case 25:
                return job_wait();
            case 26:
                return job_progress();
            case 27:
                return job_end("diffusion_job_cancel", diffusion_job_cancel, false);
            case 28:
                return fetch();
            case 29:
                return preview();
            case 30:
                return job_end("diffusion_job_destroy", diffusion_job_destroy, true);
            case 31:
            case 32:
            case 33:
                return train();
            case 34:
                return bytes_.byte() % 2
                           ? getter("diffusion_get_step_count", diffusion_get_step_count, choose_process())
                           : getter("diffusion_get_gradient_scale", diffusion_get_gradient_scale,
                                    choose_process());
            case 35:
                return learning_rate();
            case 36:
                return parameter_describe();
            case 37:
            case 38:
                return parameter_values();
            default:
                return other();
        }
    }

    // --- Processes ---

    Call create() {
        Call call;
        Process *slot = free_slot(processes_);
        if (slot == nullptr) return call;
        diffusion_config defaults;
        diffusion_config_init(&defaults);
        Verdict fields = Verdict::kGood;
        const diffusion_config config = choose_config(bytes_, fields);
        auto given =
            make_struct(bytes_, config, defaults, offsetof(diffusion_config, layers_per_block), call.verdict);
        // A short struct does not tell of all of them.
        if (given.memory->size() < sizeof config && fields == Verdict::kBad) fields = Verdict::kMaybe;
        worsen(call.verdict, fields);
        auto out = make_out<diffusion_process *>(bytes_, call.verdict);
        const bool betas = bytes_.once_in(8);
        Array<double> table;
        if (betas) {
            const int32_t steps = given.seen.noise_steps;
            const bool few = steps > 0 && steps <= 1000;
            // The formula and its numbers are not looked at then.
            if (call.verdict == Verdict::kBad) call.verdict = Verdict::kMaybe;
            if (given.pointer == nullptr || out.pointer == nullptr) call.verdict = Verdict::kBad;
            table = make_array<double>(bytes_, few ? size_t(steps) : 1, call.verdict);
            for (size_t i = 0; i < table.memory->size() / sizeof(double); i++) {
                const double beta = 0.1 + 0.001 * double(i % 800);
                std::memcpy(table.memory->data() + 8 * i, &beta, 8);
            }
            if (bytes_.once_in(4) && table.memory->size() > 0) {
                const double beta = bytes_.pick({kNaN, kInfinity, 0.0, -0.1, 1.1, 1.0, 5e-324});
                std::memcpy(table.memory->data(), &beta, 8);
                worsen(call.verdict, beta == 1.0 || beta == 5e-324 ? Verdict::kMaybe : Verdict::kBad);
            }
        }
        call.name = betas ? "diffusion_create_with_betas" : "diffusion_create";
        call.make = [=] {
            return Outcome(
                betas ? diffusion_create_with_betas(given.pointer, table.pointer, table.len, out.pointer)
                      : diffusion_create(given.pointer, out.pointer));
        };
        call.then = [this, slot, out](const Outcome &outcome) { born(slot, out, outcome); };
        return call;
    }

    void born(Process *slot, const Array<diffusion_process *> &out, const Outcome &outcome) {
        slot->reserved = false;
        if (!outcome.ok()) {
            if (!out.memory->untouched()) finding("a failed call has written a handle");
            return;
        }
        slot->handle = value_of(out);
        slot->live = true;
        slot->config.struct_size = sizeof(diffusion_config);
        check_outcome("diffusion_get_config of a new process",
                      Outcome(diffusion_get_config(slot->handle, &slot->config)), statuses(DIFFUSION_OK));
        // Whatever made it large, it is not worth computing with.
        if (slot->image() > 1024 || slot->config.noise_steps > 1000) {
            check_outcome("diffusion_destroy", Outcome(diffusion_destroy(slot->handle)),
                          statuses(DIFFUSION_OK));
            slot->live = false;
        }
    }

    std::string choose_path(Verdict &verdict) {
        const uint8_t how = bytes_.byte();
        if (how < 216) return std::string(1, char('a' + how % 3));
        worsen(verdict, Verdict::kMaybe);
        switch (how % 14) {
            case 0:
                worsen(verdict, Verdict::kBad);
                return "";
            case 1:
                worsen(verdict, Verdict::kBad);
                return "\xff\xfe";
            case 2:
                return ".";
            case 3:
                return "..";
            case 4:
                return "/";
            case 5:
                return "/dev/null";
            case 6:
                return "/proc/self/mem";
            case 7:
                return "a/../b";
            case 8:
                return "missing/x";
            case 9:
                return std::string(bytes_.word(2), 'x');
            case 10:
                return "a/unet";
            case 11:
                return "a/model_index.json";
            case 12:
                return "keep";
            default:
                return std::string(255, 'x');
        }
    }

    Call load() {
        Call call;
        Process *slot = free_slot(processes_);
        if (slot == nullptr) return call;
        const std::string path = choose_path(call.verdict);
        // A checkpoint that was saved can be loaded at any time, whoever replaces it meanwhile.
        if (saved_.count(path) == 0) worsen(call.verdict, Verdict::kMaybe);
        const bool null = bytes_.once_in(24), plain = bytes_.byte() < 128;
        if (null) call.verdict = Verdict::kBad;
        auto out = make_out<diffusion_process *>(bytes_, call.verdict);
        Struct<diffusion_config> overrides;
        if (!plain) {
            diffusion_config defaults;
            diffusion_config_init(&defaults);
            Verdict ignored = Verdict::kGood;
            const diffusion_config config = bytes_.byte() % 2 ? defaults : choose_config(bytes_, ignored);
            overrides =
                make_struct(bytes_, config, defaults, offsetof(diffusion_config, layers_per_block), ignored);
            worsen(call.verdict, Verdict::kMaybe);
        }
        call.name = "diffusion_load";
        call.good = statuses(DIFFUSION_OK);
        call.make = [=] {
            return Outcome(diffusion_load(null ? nullptr : path.c_str(), overrides.pointer, out.pointer));
        };
        call.then = [this, slot, out](const Outcome &outcome) { born(slot, out, outcome); };
        return call;
    }

    Call save() {
        Call call;
        const auto process = choose_process();
        const std::string path = choose_path(call.verdict);
        const bool null = bytes_.once_in(24);
        if (null) call.verdict = Verdict::kBad;
        call.name = "diffusion_save";
        call.dead_handle = process.slot == nullptr;
        call.good = statuses(DIFFUSION_OK);
        call.make = [=] { return Outcome(diffusion_save(process.handle, null ? nullptr : path.c_str())); };
        call.then = [this, path](const Outcome &outcome) {
            written_ = true;
            if (outcome.ok() && path.size() == 1) saved_.insert(path);
        };
        return call;
    }

    Call export_() {
        Call call;
        const auto process = choose_process();
        const std::string path = choose_path(call.verdict);
        const int32_t precision =
            bytes_.once_in(8) ? bytes_.pick({-1, 3, INT_MAX, INT_MIN}) : int32_t(bytes_.below(3));
        if (precision < 0 || precision > 2) call.verdict = Verdict::kBad;
        call.name = "diffusion_export";
        call.dead_handle = process.slot == nullptr;
        call.good = statuses(DIFFUSION_OK, DIFFUSION_ERROR_NON_FINITE);
        call.make = [=] { return Outcome(diffusion_export(process.handle, path.c_str(), precision)); };
        call.then = [this, path](const Outcome &outcome) {
            written_ = true;
            if (outcome.ok() && path.size() == 1) saved_.insert(path);
        };
        return call;
    }

    Call destroy() {
        Call call;
        const auto process = choose_process();
        call.name = "diffusion_destroy";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] { return Outcome(diffusion_destroy(process.handle)); };
        call.then = [process](const Outcome &outcome) {
            if (outcome.ok() && process.slot != nullptr) process.slot->live = false;
        };
        // A made-up handle may be that of the process that the other thread makes meanwhile; it is not to be
        // ended then.
        if (process.slot == nullptr && process.handle != nullptr && !was_ours(process.handle))
            call.make = nullptr;
        return call;
    }

    bool was_ours(const diffusion_process *handle) const {
        for (const auto &process : processes_) {
            if (process.handle == handle) return true;
        }
        return false;
    }

    Call cancel() {
        Call call;
        const auto process = choose_process();
        call.name = "diffusion_cancel";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] { return Outcome(diffusion_cancel(process.handle)); };
        return call;
    }

    Call get_config() {
        Call call;
        const auto process = choose_process();
        diffusion_config blank;
        std::memset(&blank, Memory::kFill, sizeof blank);
        auto out =
            make_struct(bytes_, blank, blank, offsetof(diffusion_config, layers_per_block), call.verdict);
        std::vector<uint8_t> before(out.memory->data(), out.memory->data() + out.memory->size());
        call.name = "diffusion_get_config";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] { return Outcome(diffusion_get_config(process.handle, out.pointer)); };
        call.then = [out, before](const Outcome &outcome) {
            const bool same = std::memcmp(before.data(), out.memory->data(), before.size()) == 0;
            if (!outcome.ok() && !same) finding("a failed call has written");
            if (outcome.ok() && (same || std::memcmp(before.data(), out.memory->data(), 4) != 0)) {
                finding("diffusion_get_config has not written, or has changed struct_size");
            }
        };
        return call;
    }

    Call get_schedule() {
        Call call;
        const auto process = choose_process();
        auto out = make_array<float>(bytes_, size_t(config_of(process.slot).noise_steps), call.verdict);
        const int32_t table =
            bytes_.once_in(8) ? bytes_.pick({-1, 5, INT_MAX, INT_MIN}) : int32_t(bytes_.below(5));
        if (table < 0 || table > 4) call.verdict = Verdict::kBad;
        call.name = "diffusion_get_schedule";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] {
            return Outcome(diffusion_get_schedule(process.handle, table, out.pointer, out.len));
        };
        call.then = writes(out);
        return call;
    }

    Call set_log() {
        Call call;
        const auto process = choose_process();
        const bool none = bytes_.byte() % 2;
        call.name = "diffusion_set_log_callback";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] {
            return Outcome(diffusion_set_log_callback(process.handle, none ? nullptr : on_log, &on_log_data));
        };
        return call;
    }

    // --- Computing ---

    size_t choose_batch(Verdict &verdict) {
        const uint8_t how = bytes_.byte();
        if (how < 224) return 1 + how % 3;
        if (how < 232) return 70;  // more than one evaluation takes
        worsen(verdict, Verdict::kBad);
        return bytes_.pick<size_t>({0, SIZE_MAX, size_t{1} << 60, (size_t{1} << 60) + 1, size_t{1} << 63,
                                    size_t{1} << 32, SIZE_MAX / 64});
    }

    // Arrays for `batch` images, as long as the product comes out, overflow and all: it is the library that
    // has to notice.
    struct Images {
        size_t batch;
        Array<float> images;
        Array<int64_t> timesteps;
        bool labelled = false;
        Array<int64_t> labels;
        size_t need;
    };
    Images choose_images(const Process *process, Verdict &verdict, bool timesteps, bool classes) {
        Images chosen;
        chosen.batch = choose_batch(verdict);
        chosen.need = chosen.batch * image_of(process);
        if (chosen.need > 1 << 20) chosen.need = 16;
        const size_t batch = std::min<size_t>(chosen.batch, 128);
        chosen.images = make_array<float>(bytes_, chosen.need, verdict);
        fill(bytes_, chosen.images, verdict);
        if (timesteps) {
            chosen.timesteps = one_each(batch, verdict);
            fill(bytes_, chosen.timesteps, config_of(process).noise_steps, verdict);
        }
        if (!classes) return chosen;
        const int32_t count = config_of(process).num_class_embeds;
        chosen.labelled = (count != 0) != bytes_.once_in(16);
        if (chosen.labelled != (count != 0)) worsen(verdict, Verdict::kBad);
        if (chosen.labelled) {
            chosen.labels = one_each(batch, verdict);
            fill(bytes_, chosen.labels, count, verdict);
        }
        return chosen;
    }
    // An array without a length of its own.
    Array<int64_t> one_each(size_t count, Verdict &verdict) {
        const uint8_t how = bytes_.byte();
        Array<int64_t> array;
        array.memory = std::make_shared<Memory>(count * sizeof(int64_t), how == 255 ? 1 : 0);
        array.pointer = how == 254 ? nullptr : array.memory->as<int64_t>();
        if (how >= 254) worsen(verdict, Verdict::kBad);
        return array;
    }
    template <class T>
    static bool odd(const Array<T> &array) {
        return array.pointer == nullptr || reinterpret_cast<uintptr_t>(array.pointer) % alignof(T) != 0;
    }

    Call add_noise() {
        Call call;
        const auto process = choose_process();
        const auto in = choose_images(process.slot, call.verdict, true, false);
        auto noisy = make_array<float>(bytes_, in.need, call.verdict),
             noise = make_array<float>(bytes_, in.need, call.verdict);
        const uint64_t seed = bytes_.word(2);
        call.name = "diffusion_add_noise";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] {
            return Outcome(diffusion_add_noise(process.handle, in.images.pointer, in.images.len,
                                               in.timesteps.pointer, in.batch, seed, noisy.pointer, noisy.len,
                                               noise.pointer, noise.len));
        };
        call.then = [noisy, noise](const Outcome &outcome) {
            writes(noisy)(outcome);
            writes(noise)(outcome);
        };
        return call;
    }

    Call predict() {
        Call call;
        const auto process = choose_process();
        const auto in = choose_images(process.slot, call.verdict, true, true);
        auto out = make_array<float>(bytes_, in.need, call.verdict);
        call.name = in.labelled ? "diffusion_predict_noise_with_classes" : "diffusion_predict_noise";
        call.dead_handle = process.slot == nullptr;
        call.good = kSampled;
        call.make = [=] {
            return Outcome(
                in.labelled ? diffusion_predict_noise_with_classes(
                                  process.handle, in.images.pointer, in.images.len, in.timesteps.pointer,
                                  in.labels.pointer, in.batch, out.pointer, out.len)
                            : diffusion_predict_noise(process.handle, in.images.pointer, in.images.len,
                                                      in.timesteps.pointer, in.batch, out.pointer, out.len));
        };
        call.then = writes(out);
        return call;
    }

    Call train() {
        Call call;
        const auto process = choose_process();
        const auto in = choose_images(process.slot, call.verdict, false, true);
        auto loss = make_out<float>(bytes_, call.verdict, true);
        call.name = in.labelled ? "diffusion_train_step_with_classes" : "diffusion_train_step";
        call.dead_handle = process.slot == nullptr;
        call.good = kSampled;
        call.make = [=] {
            return Outcome(in.labelled ? diffusion_train_step_with_classes(process.handle, in.images.pointer,
                                                                           in.images.len, in.labels.pointer,
                                                                           in.batch, loss.pointer)
                                       : diffusion_train_step(process.handle, in.images.pointer,
                                                              in.images.len, in.batch, loss.pointer));
        };
        call.then = writes(loss);
        return call;
    }

    Call sample_plain() {
        Call call;
        const auto process = choose_process();
        const diffusion_config &config = config_of(process.slot);
        // Neither of the two takes classes.
        if (config.num_class_embeds != 0) call.verdict = Verdict::kBad;
        const bool ddim = bytes_.byte() % 2;
        size_t count = choose_batch(call.verdict);
        if (!ddim && config.noise_steps > 100) worsen(call.verdict, Verdict::kMaybe), count = 1;
        size_t need = count * image_of(process.slot);
        if (need > 1 << 20) need = 16;
        auto out = make_array<float>(bytes_, need, call.verdict);
        int32_t steps = 1 + int32_t(bytes_.below(size_t(std::min(config.noise_steps, 6))));
        float eta = bytes_.pick({0.0f, 1.0f, 0.5f, 0.0f});
        if (bytes_.once_in(8))
            steps = bytes_.pick({0, -1, config.noise_steps + 1, INT_MAX, INT_MIN, config.noise_steps});
        if (bytes_.once_in(8)) eta = bytes_.pick({NAN, INFINITY, -0.1f, 1.1f, -0.0f, 1e-40f});
        if (ddim && (steps < 1 || steps > config.noise_steps || !(eta >= 0 && eta <= 1)))
            call.verdict = Verdict::kBad;
        const uint64_t seed = bytes_.word(2);
        call.name = ddim ? "diffusion_sample_ddim" : "diffusion_sample";
        call.dead_handle = process.slot == nullptr;
        call.good = kSampled;
        call.make = [=] {
            return Outcome(
                ddim ? diffusion_sample_ddim(process.handle, count, steps, eta, seed, out.pointer, out.len)
                     : diffusion_sample(process.handle, count, seed, out.pointer, out.len));
        };
        call.then = writes(out);
        return call;
    }

    // --- Sampling parameters and jobs ---

    struct Params {
        Struct<diffusion_sample_params> given;
        Array<uint64_t> seeds;
        Array<float> noise;
        Array<int64_t> labels;
        Callback *callback = nullptr;
        size_t bytes = 0;  // of the result, where that can be said
        bool endless = false, floats = false;
        Verdict size = Verdict::kGood;  // what diffusion_sample_size looks at
        Statuses may = kSampled;
    };

    Params choose_params(const Process *process, diffusion_process *handle, Verdict &verdict) {
        Params made;
        const diffusion_config &config = config_of(process);
        diffusion_sample_params params, defaults;
        diffusion_sample_params_init(&defaults);
        params = defaults;
        params.steps = 1 + int32_t(bytes_.below(size_t(std::min(config.noise_steps, 6))));
        params.num_samples = 1 + bytes_.below(3);
        params.seed = bytes_.byte();
        Verdict count = Verdict::kGood;
        for (size_t changes = bytes_.below(5); changes > 0; changes--)
            choose_param(params, config, count);
        made.endless = params.num_samples > 128 && params.num_samples <= 1 << 20;
        // What waits for it by right must not wait for hours.
        if (made.endless) params.timeout_ms = 20;
        if (!made.endless) {
            if (bytes_.once_in(6)) {
                made.seeds = make_array<uint64_t>(bytes_, few(params.num_samples), verdict);
                std::memset(made.seeds.memory->data(), 7, made.seeds.memory->size());
                params.seeds = made.seeds.pointer;
                params.seeds_len = made.seeds.len;
            }
            if (bytes_.once_in(6)) {
                made.noise = make_array<float>(bytes_, few(params.num_samples) * image_of(process), verdict);
                fill(bytes_, made.noise, verdict);
                params.initial_noise = made.noise.pointer;
                params.initial_noise_len = made.noise.len;
            }
            if ((config.num_class_embeds != 0) != bytes_.once_in(16)) {
                made.labels = make_array<int64_t>(bytes_, few(params.num_samples), verdict);
                fill(bytes_, made.labels, config.num_class_embeds, verdict);
                params.class_labels = made.labels.pointer;
                params.class_labels_len = made.labels.len;
            }
        }
        if (bytes_.once_in(4)) {
            made.callback = &callbacks_.emplace_back();
            made.callback->action = Callback::Action(bytes_.below(Callback::kActions));
            made.callback->at = 1 + bytes_.below(8);
            made.callback->process = handle;
            params.progress = on_progress;
            params.user_data = made.callback;
        }
        made.given =
            make_struct(bytes_, params, defaults, offsetof(diffusion_sample_params, seeds), made.size);
        if (made.endless &&
            made.given.seen.timeout_ms != params.timeout_ms) {  // a struct too short to say so
            const size_t one = 1, at = offsetof(diffusion_sample_params, num_samples);
            if (made.given.memory->size() >= at + sizeof one)
                std::memcpy(made.given.memory->data() + at, &one, sizeof one);
            made.given.seen.num_samples = 1;
            made.endless = false;
        }
        judge_params(made, config, verdict);
        return made;
    }

    static size_t few(size_t count) { return count <= 128 ? count : 1; }

    void choose_param(diffusion_sample_params &params, const diffusion_config &config, Verdict &) {
        switch (bytes_.below(12)) {
            case 0:
                params.method =
                    bytes_.byte() < 224 ? int32_t(bytes_.below(7)) : bytes_.pick({-1, 7, INT_MAX, INT_MIN});
                break;
            case 1:
                params.num_samples = bytes_.pick<size_t>(
                    {1, 2, 70, 0, SIZE_MAX, (1 << 20) + 1, 1 << 20, 1000, size_t{1} << 60, size_t{1} << 63});
                break;
            case 2:
                params.steps =
                    bytes_.pick({0, 1, 2, -1, config.noise_steps, config.noise_steps + 1, INT_MAX, INT_MIN});
                break;
            case 3:
                params.spacing = bytes_.pick({-1, 0, 1, 2, 3, 4, -2, INT_MAX, INT_MIN});
                break;
            case 4:
                params.eta = bytes_.pick({0.0, 1.0, 0.5, kNaN, kInfinity, -0.1, 1.1, 5e-324});
                break;
            case 5:
                params.variance = bytes_.pick({-1, 0, 1, 2, -2, INT_MAX});
                break;
            case 6:
                params.clip_sample = bytes_.pick({-1, 0, 1, 2, -2, INT_MIN});
                break;
            case 7:
                params.use_clipped_model_output = bytes_.pick({0, 1, 2, -1, INT_MAX});
                break;
            case 8:
                params.format = bytes_.pick({0, 1, 2, 3, 4, -1, INT_MAX, INT_MIN});
                break;
            case 9:
                params.dynamic_thresholding =
                    bytes_.pick({0.0, 0.5, 0.995, 1.0, kNaN, -1.0, 5e-324, kInfinity});
                break;
            case 10:
                params.timeout_ms = bytes_.pick<int64_t>({0, 1, 2, 1000, INT64_MAX, -1, INT64_MIN});
                break;
            default:
                params.seed = bytes_.word();
        }
    }

    // What the header says of the parameters, as far as the caller's struct reaches.
    void judge_params(Params &made, const diffusion_config &config, Verdict &verdict) {
        const auto &p = made.given.seen;
        const auto bad = [&verdict](bool wrong) {
            if (wrong) worsen(verdict, Verdict::kBad);
        };
        // Arrays that a short struct does not tell of were judged for nothing.
        if (made.given.pointer != nullptr && made.given.memory->size() < sizeof p &&
            verdict == Verdict::kBad && made.size != Verdict::kBad) {
            verdict = Verdict::kMaybe;
        }
        const bool format = p.format >= 0 && p.format <= 3;
        const bool fits =
            p.format < 2 || config.channels == 1 || config.channels == 3 || config.channels == 4;
        if (p.num_samples < 1 || p.num_samples > 1 << 20 || !format || !fits)
            worsen(made.size, Verdict::kBad);
        worsen(verdict, made.size);
        bad(p.method < 0 || p.method > 6);
        bad(p.steps < 0 || p.steps > config.noise_steps);
        bad(p.spacing < -1 || p.spacing > 3);
        bad(p.variance < -1 || p.variance > 1);
        bad(p.clip_sample < -1 || p.clip_sample > 1);
        bad(p.use_clipped_model_output < 0 || p.use_clipped_model_output > 1);
        bad(!(p.eta >= 0 && p.eta <= 1));
        bad(!(p.dynamic_thresholding >= 0 && p.dynamic_thresholding < 1));
        bad(p.timeout_ms < 0);
        bad(config.num_class_embeds == 0 ? p.class_labels_len != 0 : p.class_labels == nullptr);
        // Some go together, some do not; and a great eta is nobody's business with another method.
        if (p.spacing == DIFFUSION_SPACING_KARRAS || p.method > 1) worsen(verdict, Verdict::kMaybe);
        if (config.rescale_betas_zero_snr != 0) worsen(verdict, Verdict::kMaybe);
        if (p.timeout_ms > 0) made.may |= statuses(DIFFUSION_ERROR_TIMEOUT);
        if (made.callback != nullptr && p.progress != nullptr)
            made.may |= statuses(DIFFUSION_ERROR_CANCELLED);
        if (made.size == Verdict::kBad) return;
        constexpr size_t per_value[] = {4, 2, 0, 0}, per_pixel[] = {0, 0, 3, 4};
        const size_t pixels = size_t(config.image_size) * size_t(config.image_size);
        made.bytes =
            p.num_samples * pixels * (size_t(config.channels) * per_value[p.format] + per_pixel[p.format]);
        made.floats = p.format == DIFFUSION_FORMAT_F32;
        made.endless = p.num_samples > 128;
    }

    Call sample_with() {
        Call call;
        const auto process = choose_process();
        const auto params = choose_params(process.slot, process.handle, call.verdict);
        auto out = make_array<uint8_t>(bytes_, params.endless ? 16 : params.bytes, call.verdict);
        if (params.endless) call.verdict = Verdict::kBad;
        if (params.floats && odd(Array<float>{out.memory, reinterpret_cast<float *>(out.pointer), 0}))
            worsen(call.verdict, Verdict::kMaybe);
        call.name = "diffusion_sample_with";
        call.dead_handle = process.slot == nullptr;
        call.good = params.may;
        call.make = [=] {
            return Outcome(diffusion_sample_with(process.handle, params.given.pointer, out.pointer, out.len));
        };
        call.then = writes(out, params.floats);
        return call;
    }

    Call sample_size() {
        Call call;
        const auto process = choose_process();
        Verdict ignored = Verdict::kGood;
        const auto params = choose_params(process.slot, process.handle, ignored);
        call.verdict = params.size;
        auto out = make_out<size_t>(bytes_, call.verdict);
        call.name = "diffusion_sample_size";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] {
            return Outcome(diffusion_sample_size(process.handle, params.given.pointer, out.pointer));
        };
        call.then = [=](const Outcome &outcome) {
            writes(out, false)(outcome);
            if (outcome.ok() && process.slot != nullptr && value_of(out) != params.bytes) {
                finding("diffusion_sample_size says %zu, should be %zu", value_of(out), params.bytes);
            }
        };
        return call;
    }

    Call submit() {
        Call call;
        Job *slot = free_slot(jobs_);
        if (slot == nullptr) return call;
        const auto process = choose_process();
        const auto params = choose_params(process.slot, process.handle, call.verdict);
        auto out = make_out<diffusion_job *>(bytes_, call.verdict);
        call.name = "diffusion_sample_submit";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] {
            return Outcome(diffusion_sample_submit(process.handle, params.given.pointer, out.pointer));
        };
        call.then = [=](const Outcome &outcome) {
            slot->reserved = false;
            writes(out, false)(outcome);
            if (!outcome.ok()) return;
            slot->handle = value_of(out);
            slot->live = true;
            slot->bytes = params.bytes;
            slot->endless = params.endless;
            slot->floats = params.floats;
            slot->callback = params.callback;
            if (params.callback != nullptr) params.callback->job = slot->handle;
        };
        return call;
    }

    // However a job has ended.
    static constexpr Statuses kJobEnds =
        kSampled | statuses(DIFFUSION_ERROR_CANCELLED, DIFFUSION_ERROR_TIMEOUT);

    Call job_wait() {
        Call call;
        const auto job = choose_job();
        int64_t limit = bytes_.pick<int64_t>({-1, 0, 1, 3, 1000, INT64_MAX, INT64_MIN, -1});
        if (job.slot != nullptr && job.slot->endless) limit = bytes_.byte() % 4;
        call.name = "diffusion_job_wait";
        call.dead_handle = job.slot == nullptr;
        call.good = kJobEnds;
        call.make = [=] { return Outcome(diffusion_job_wait(job.handle, limit)); };
        return call;
    }

    Call job_progress() {
        Call call;
        const auto job = choose_job();
        auto done = make_out<uint64_t>(bytes_, call.verdict, true),
             total = make_out<uint64_t>(bytes_, call.verdict, true);
        call.name = "diffusion_job_progress";
        call.dead_handle = job.slot == nullptr;
        call.make = [=] { return Outcome(diffusion_job_progress(job.handle, done.pointer, total.pointer)); };
        call.then = [=](const Outcome &outcome) {
            writes(done, false)(outcome);
            writes(total, false)(outcome);
            if (outcome.ok() && done.pointer != nullptr && total.pointer != nullptr &&
                value_of(done) > value_of(total)) {
                finding("%lu steps of %lu", value_of(done), value_of(total));
            }
        };
        return call;
    }

    Call job_end(const char *name, int32_t (*function)(diffusion_job *), bool ends) {
        Call call;
        const auto job = choose_job();
        call.name = name;
        call.dead_handle = job.slot == nullptr;
        call.make = [=] { return Outcome(function(job.handle)); };
        call.then = [=](const Outcome &outcome) {
            if (outcome.ok() && ends && job.slot != nullptr) job.slot->live = false;
        };
        if (job.slot == nullptr && ends && job.handle != nullptr) {
            bool ours = false;
            for (const auto &slot : jobs_)
                ours |= slot.handle == job.handle;
            if (!ours) call.make = nullptr;
        }
        return call;
    }

    Call fetch() {
        Call call;
        const auto job = choose_job();
        const bool endless = job.slot != nullptr && job.slot->endless;
        auto out =
            make_array<uint8_t>(bytes_, job.slot == nullptr || endless ? 16 : job.slot->bytes, call.verdict);
        if (endless) call.verdict = Verdict::kBad;
        if (odd(Array<float>{out.memory, reinterpret_cast<float *>(out.pointer), 0}))
            worsen(call.verdict, Verdict::kMaybe);
        call.name = "diffusion_job_fetch";
        call.dead_handle = job.slot == nullptr;
        call.good = kJobEnds | statuses(DIFFUSION_ERROR_INVALID_ARGUMENT);
        call.make = [=] { return Outcome(diffusion_job_fetch(job.handle, out.pointer, out.len)); };
        call.then = writes(out, job.slot != nullptr && job.slot->floats);
        return call;
    }

    Call preview() {
        Call call;
        const auto job = choose_job();
        const bool endless = job.slot != nullptr && job.slot->endless;
        auto out =
            make_array<uint8_t>(bytes_, job.slot == nullptr || endless ? 16 : job.slot->bytes, call.verdict);
        auto done = make_out<uint64_t>(bytes_, call.verdict, true);
        if (endless) call.verdict = Verdict::kBad;
        if (odd(Array<float>{out.memory, reinterpret_cast<float *>(out.pointer), 0}))
            worsen(call.verdict, Verdict::kMaybe);
        call.name = "diffusion_job_preview";
        call.dead_handle = job.slot == nullptr;
        call.good = kJobEnds;
        call.make = [=] {
            return Outcome(diffusion_job_preview(job.handle, out.pointer, out.len, done.pointer));
        };
        call.then = [out, done](const Outcome &outcome) {
            writes(out, false)(outcome);
            writes(done, false)(outcome);
        };
        return call;
    }

    // --- Numbers and parameters ---

    Call learning_rate() {
        Call call;
        const auto process = choose_process();
        if (bytes_.byte() % 2)
            return getter("diffusion_get_learning_rate", diffusion_get_learning_rate, process);
        const double rate =
            bytes_.pick({1e-4, 0.1, 1e-300, 1e30, 0.0, -1.0, kNaN, kInfinity, DBL_MAX, 5e-324});
        if (!(rate > 0 && rate < kInfinity)) call.verdict = Verdict::kBad;
        if (rate > 1 || rate < 1e-200) worsen(call.verdict, Verdict::kMaybe);
        call.name = "diffusion_set_learning_rate";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] { return Outcome(diffusion_set_learning_rate(process.handle, rate)); };
        return call;
    }

    Call parameter_describe() {
        Call call;
        const auto process = choose_process();
        const size_t index =
            bytes_.once_in(8) ? bytes_.pick<size_t>({SIZE_MAX, 1000, size_t{1} << 63}) : bytes_.below(16);
        if (index >= 1000) call.verdict = Verdict::kBad;
        diffusion_parameter blank;
        std::memset(&blank, Memory::kFill, sizeof blank);
        auto out = make_struct(bytes_, blank, blank, sizeof blank, call.verdict);
        std::vector<uint8_t> before(out.memory->data(), out.memory->data() + out.memory->size());
        if (call.verdict == Verdict::kBad && out.pointer != nullptr && index < 1000)
            call.verdict = Verdict::kMaybe;
        call.name = "diffusion_parameter_describe";
        call.dead_handle = process.slot == nullptr;
        call.make = [=] { return Outcome(diffusion_parameter_describe(process.handle, index, out.pointer)); };
        call.then = [out, before](const Outcome &outcome) {
            if (!outcome.ok() && std::memcmp(before.data(), out.memory->data(), before.size()) != 0)
                finding("a failed call has written");
        };
        return call;
    }

    Call parameter_values() {
        Call call;
        const auto process = choose_process();
        diffusion_parameter parameter;
        parameter.struct_size = sizeof parameter;
        size_t count = 0, need = 8;
        std::string name = "conv_in.bias";
        if (process.slot != nullptr && diffusion_parameter_count(process.handle, &count) == DIFFUSION_OK &&
            count > 0 &&
            diffusion_parameter_describe(process.handle, bytes_.below(count), &parameter) == DIFFUSION_OK) {
            name = parameter.name;
            need = parameter.len;
        }
        if (bytes_.once_in(12)) {
            call.verdict = Verdict::kBad;
            name =
                bytes_.pick<std::string>({"", "x", "\xff", name + ".x", std::string(5000, 'x'), "conv_in"});
        }
        const bool null = bytes_.once_in(24);
        if (null) call.verdict = Verdict::kBad;
        const int32_t weights =
            bytes_.once_in(12) ? bytes_.pick({-1, 2, INT_MAX, INT_MIN}) : int32_t(bytes_.below(2));
        if (weights < 0 || weights > 1) call.verdict = Verdict::kBad;
        auto values = make_array<float>(bytes_, need, call.verdict);
        const bool writes_weights = bytes_.byte() % 2;
        call.dead_handle = process.slot == nullptr;
        if (writes_weights) {
            fill(bytes_, values, call.verdict);
            call.name = "diffusion_parameter_write";
            call.make = [=] {
                return Outcome(diffusion_parameter_write(
                    process.handle, weights, null ? nullptr : name.c_str(), values.pointer, values.len));
            };
        } else {
            call.name = "diffusion_parameter_read";
            call.make = [=] {
                return Outcome(diffusion_parameter_read(
                    process.handle, weights, null ? nullptr : name.c_str(), values.pointer, values.len));
            };
            call.then = writes(values);
        }
        return call;
    }

    // What needs no process.
    Call other() {
        Call call;
        switch (bytes_.below(5)) {
            case 0: {
                const int32_t device = bytes_.pick({0, 1, 2, 3, -1, INT_MAX, INT_MIN});
                auto out = make_out<int32_t>(bytes_, call.verdict);
                if (device != 1 && device != 2) call.verdict = Verdict::kBad;
                call.name = "diffusion_device_count";
                call.make = [=] { return Outcome(diffusion_device_count(device, out.pointer)); };
                call.then = writes(out, false);
                break;
            }
            case 1: {
                auto out = make_out<diffusion_config>(bytes_, call.verdict);
                const bool preset = bytes_.byte() % 2;
                call.name = "diffusion_config_init";
                call.make = [=] {
                    return Outcome(preset ? diffusion_config_init_cifar10(out.pointer)
                                          : diffusion_config_init(out.pointer));
                };
                call.then = writes(out, false);
                break;
            }
            case 2: {
                auto out = make_out<diffusion_sample_params>(bytes_, call.verdict);
                call.name = "diffusion_sample_params_init";
                call.make = [=] { return Outcome(diffusion_sample_params_init(out.pointer)); };
                call.then = writes(out, false);
                break;
            }
            case 3: {
                const int32_t status = int32_t(bytes_.word(4));
                const char *text = diffusion_status_string(status);
                if (text == nullptr || text[0] == 0) finding("diffusion_status_string(%d) is empty", status);
                break;
            }
            default:
                if (diffusion_abi_version() != DIFFUSION_ABI_VERSION || diffusion_version()[0] == 0)
                    finding("diffusion_version");
                call = getter("diffusion_parameter_count", diffusion_parameter_count, choose_process());
        }
        return call;
    }

    Bytes &bytes_;
    std::vector<Process> processes_ = std::vector<Process>(kProcesses);
    std::vector<Job> jobs_ = std::vector<Job>(kJobs);
    std::deque<Callback> callbacks_;
    std::set<std::string> saved_;
    bool written_ = false;
};

}  // namespace
}  // namespace fuzz

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    fuzz::work_folder();
    // Not a checkpoint's: the folder itself may not be replaced by one.
    std::fclose(std::fopen("keep", "w"));
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz::Bytes bytes(data, size);
    fuzz::World(bytes).run();
    return 0;
}
