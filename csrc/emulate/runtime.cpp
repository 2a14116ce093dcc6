// Runs launches: fibers as threads, barriers, warp-wide functions. See emulate.h for what it promises.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulate.h"
#include "fiber.h"
#include "races.h"

// The section of all __shared__ variables; absent in a module that has none.
extern "C" __attribute__((weak)) char __start_emulated_shared[], __stop_emulated_shared[];

namespace emulate {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kMostThreads = 1024;    // a block
constexpr size_t kMostShared = 227 << 10;  // bytes of dynamic shared memory a block may ask for on H100
constexpr unsigned char kPoison = 0xff;    // NaN as a float of any size, -1 as an integer

enum class State { ready, at_barrier, at_warp, ended };

struct Thread {
    Context context;
    uint3 index{};
    int number = 0;  // in the block
    State state = State::ended;
    Request request{};    // at_warp: what it asks for
    uint64_t answer = 0;  // what it got
    const char* barrier = nullptr;
    Line line{};  // where it waits
};

struct Running {
    dim3 grid, block;
    const std::function<void()>* body = nullptr;
    std::vector<unsigned char> memory;  // dynamic shared; unused when the block has none
    unsigned char* dynamic = nullptr;
    uint3 block_index{};
    std::vector<Thread> threads;
    int arrived = 0, predicates = 0;  // at the block's barrier
    int released_predicates = 0;
    const Thread* first_at_barrier = nullptr;
    Thread* current = nullptr;
    Context scheduler;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    std::string error;
};

Running* run = nullptr;
std::vector<Stack> stacks;
uint64_t launches = 0;

uint64_t seed() {
    const char* text = std::getenv("MLPERF_FAST_EMULATE_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 0;
}

std::string format(const char* text, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* text, va_list arguments) {
    char line[1024];
    std::vsnprintf(line, sizeof line, text, arguments);
    return line;
}
std::string format(const char* text, ...) {
    va_list arguments;
    va_start(arguments, text);
    std::string line = format(text, arguments);
    va_end(arguments);
    return line;
}
std::string text(uint3 v) { return format("(%u,%u,%u)", v.x, v.y, v.z); }
std::string text(Line line) { return format("%s:%d", line.file, line.number); }

// "thread (5,0,0) waits at __syncthreads, sgd.cu:12"
std::string whereabouts(const Thread& thread) {
    const std::string who = "thread " + text(thread.index);
    switch (thread.state) {
        case State::at_barrier:
            return who + " waits at " + thread.barrier + ", " + text(thread.line);
        case State::at_warp:
            return who +
                   format(" (lane %d) waits at %s(0x%08x), ", thread.number % kWarp, thread.request.name,
                          thread.request.mask) +
                   text(thread.line);
        case State::ended:
            return who + " has ended";
        case State::ready:
            return who + " runs";
    }
    return who;
}

// Switches ------------------------------------------------------------------------------------------------------------

void to_scheduler(bool for_good = false) {
    void* fake = nullptr;
    Thread& me = *run->current;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, run->scheduler_stack, run->scheduler_stack_bytes);
    Context::go(me.context, run->scheduler);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

void to_thread(Thread& thread) {
    run->current = &thread;
    void* fake = nullptr;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&fake, stacks[thread.number].bottom(), Stack::kBytes);
    Context::go(run->scheduler, thread.context);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
    run->current = nullptr;
}

void wait(State state, Line line) {
    Thread& me = *run->current;
    me.state = state;
    me.line = line;
    to_scheduler();
}

// Warps ---------------------------------------------------------------------------------------------------------------

Thread* lane_of(int warp, int lane) {
    const size_t number = static_cast<size_t>(warp) * kWarp + lane;
    return number < run->threads.size() ? &run->threads[number] : nullptr;
}

bool same(Line a, Line b) { return a.number == b.number && std::strcmp(a.file, b.file) == 0; }
bool same(const Request& a, const Request& b) { return a.kind == b.kind && a.mask == b.mask && same(a.line, b.line); }

uint64_t answer(const Request& asked, const std::vector<Thread*>& lanes) {
    uint64_t result = 0;
    switch (asked.kind) {
        case Warp::barrier:
            break;
        case Warp::shuffle:
            for (const Thread* other : lanes)
                if (other->number % kWarp == asked.source) return other->request.value;
            fail("%s reads lane %d, which doesn't take part (mask 0x%08x), at %s", asked.name, asked.source, asked.mask,
                 text(asked.line).c_str());
        case Warp::ballot:
            for (const Thread* other : lanes)
                result |= (other->request.value ? uint64_t{1} : 0) << other->number % kWarp;
            break;
        case Warp::match:
            for (const Thread* other : lanes)
                result |= uint64_t{other->request.value == asked.value} << other->number % kWarp;
            break;
        case Warp::reduce:
            result = lanes[0]->request.value;
            for (size_t i = 1; i < lanes.size(); ++i) result = asked.combine(result, lanes[i]->request.value);
            break;
    }
    return result;
}

// Lets the lanes of a request go on if all of them are there; lanes that have ended don't count, as on a GPU.
bool complete(int warp, const Request& asked) {
    std::vector<Thread*> lanes;
    for (int lane = 0; lane < kWarp; ++lane) {
        if (!(asked.mask >> lane & 1)) continue;
        Thread* thread = lane_of(warp, lane);
        if (!thread || thread->state == State::ended) continue;
        if (thread->state != State::at_warp || !same(thread->request, asked)) return false;
        lanes.push_back(thread);
    }
    Thread* const me = run->current;
    for (Thread* thread : lanes) {
        run->current = thread;  // whose error it would be
        thread->answer = answer(thread->request, lanes);
    }
    run->current = me;
    if (asked.kind == Warp::barrier) {
        std::vector<int> numbers;
        for (const Thread* thread : lanes) numbers.push_back(thread->number);
        races::warp_barrier(numbers);
    }
    for (Thread* thread : lanes) thread->state = State::ready;
    return true;
}

// A thread that ends may be the last that others waited for.
void release_lanes_that_waited_for(const Thread& ended) {
    const int warp = ended.number / kWarp;
    for (int lane = 0; lane < kWarp; ++lane) {
        Thread* thread = lane_of(warp, lane);
        if (thread && thread->state == State::at_warp) complete(warp, Request(thread->request));
    }
}

// One block -----------------------------------------------------------------------------------------------------------

void thread_entry() {
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(nullptr, &run->scheduler_stack, &run->scheduler_stack_bytes);
    (*run->body)();
    run->current->state = State::ended;
    release_lanes_that_waited_for(*run->current);
    to_scheduler(true);
    std::abort();  // nobody switches to a thread that has ended
}

void fill(void* begin, void* end) {
    // Not memset: AddressSanitizer's would mind the red zones between the variables.
    for (volatile unsigned char* p = static_cast<unsigned char*>(begin); p != end; ++p) *p = kPoison;
}

std::string deadlock() {
    const Thread* waiting = nullptr;
    for (const Thread& thread : run->threads)
        if (!waiting && thread.state != State::ended) waiting = &thread;
    const Thread* other = nullptr;
    for (const Thread& thread : run->threads) {
        const bool missing = waiting->state == State::at_barrier
                                 ? thread.state != State::at_barrier
                                 : thread.number / kWarp == waiting->number / kWarp && thread.state != State::ended &&
                                       waiting->request.mask >> thread.number % kWarp & 1 &&
                                       (thread.state != State::at_warp || !same(thread.request, waiting->request));
        if (missing && !other) other = &thread;
    }
    return whereabouts(*waiting) + ", but " + (other ? whereabouts(*other) : "nobody comes");
}

void run_block(std::mt19937_64& random, std::vector<int>& order) {
    const dim3 size = run->block;
    fill(__start_emulated_shared, __stop_emulated_shared);
    if (run->dynamic) fill(run->dynamic, run->dynamic + run->memory.size());
    run->arrived = run->predicates = 0;
    for (size_t n = 0; n < run->threads.size(); ++n) {
        Thread& thread = run->threads[n];
        thread.number = static_cast<int>(n);
        thread.index = {static_cast<unsigned>(n % size.x), static_cast<unsigned>(n / size.x % size.y),
                        static_cast<unsigned>(n / size.x / size.y)};
        thread.state = State::ready;
        thread.context.start(stacks[n].bottom(), Stack::kBytes, thread_entry);
    }
    races::block_begins(run->threads.size());
    for (bool moved = true; moved;) {
        moved = false;
        std::shuffle(order.begin(), order.end(), random);
        for (const int number : order) {
            if (run->threads[number].state != State::ready) continue;
            moved = true;
            to_thread(run->threads[number]);
            if (!run->error.empty()) return;
        }
    }
    for (const Thread& thread : run->threads)
        if (thread.state != State::ended) {
            run->error = deadlock();
            return;
        }
}

std::string refusal(dim3 grid, dim3 block, size_t shared) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads < 1 || threads > kMostThreads || block.z > 64) return format("%zu threads a block", size_t(threads));
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return "a grid of " + text(uint3{grid.x, grid.y, grid.z}) + " blocks";
    if (shared > kMostShared) return format("%zu bytes of dynamic shared memory", shared);
    return "";
}

}  // namespace

// The interface -------------------------------------------------------------------------------------------------------

uint3 thread_index() { return run->current->index; }
uint3 block_index() { return run->block_index; }
dim3 block_size() { return run->block; }
dim3 grid_size() { return run->grid; }
void* dynamic_shared() { return run->dynamic; }
int lane() { return run->current->number % kWarp; }
int thread_number() { return run && run->current ? run->current->number : -1; }
bool on_own_stack(const void* address) {
    const char* bottom = stacks[run->current->number].bottom();
    return address >= bottom && address < bottom + Stack::kBytes;
}

void fail(const char* text_format, ...) {
    va_list arguments;
    va_start(arguments, text_format);
    run->error = "thread " + text(run->current->index) + ": " + format(text_format, arguments);
    va_end(arguments);
    to_scheduler(true);
    std::abort();
}

int block_barrier(const char* name, int predicate, Line line) {
    Thread& me = *run->current;
    if (run->arrived == 0) run->first_at_barrier = &me;
    const Thread& first = *run->first_at_barrier;
    if (&first != &me && !same(first.line, line))
        fail("comes to %s, %s, but %s", name, text(line).c_str(), whereabouts(first).c_str());
    me.barrier = name;
    run->predicates += predicate != 0;
    if (++run->arrived < static_cast<int>(run->threads.size())) {
        wait(State::at_barrier, line);
    } else {
        for (Thread& thread : run->threads) thread.state = State::ready;
        run->released_predicates = run->predicates;
        run->arrived = run->predicates = 0;
        races::block_barrier();
    }
    return run->released_predicates;
}

uint64_t warp(const Request& request) {
    Thread& me = *run->current;
    if (!(request.mask >> lane() & 1))
        fail("lane %d calls %s, but its mask 0x%08x doesn't name it, at %s", lane(), request.name, request.mask,
             text(request.line).c_str());
    me.request = request;
    me.line = request.line;
    me.state = State::at_warp;
    if (!complete(me.number / kWarp, request)) to_scheduler();
    return me.answer;
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const std::string name = std::string("launch of ") + kernel;
    const std::string refused = refusal(grid, block, shared);
    if (!refused.empty()) throw std::runtime_error(name + ": invalid configuration, " + refused);

    Running state;
    state.grid = grid;
    state.block = block;
    state.body = &body;
    state.memory.resize(shared);
    state.dynamic = shared ? state.memory.data() : nullptr;
    state.threads.resize(size_t{block.x} * block.y * block.z);
    while (stacks.size() < state.threads.size()) stacks.emplace_back();
    run = &state;

    std::mt19937_64 random(seed() + ++launches);
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    std::vector<uint64_t> block_order(blocks);
    for (uint64_t i = 0; i < blocks; ++i) block_order[i] = i;
    std::shuffle(block_order.begin(), block_order.end(), random);
    std::vector<int> order(state.threads.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);

    races::launch_begins(__start_emulated_shared, __stop_emulated_shared, state.dynamic, shared);
    for (const uint64_t b : block_order) {
        run->block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                            static_cast<unsigned>(b / grid.x / grid.y)};
        run_block(random, order);
        if (!state.error.empty()) {
            state.error = "block " + text(run->block_index) + ": " + state.error;
            break;
        }
    }
    run = nullptr;
    if (!state.error.empty() && __asan_unpoison_memory_region)  // the frames of threads that were left where they stood
        for (const Stack& stack : stacks) __asan_unpoison_memory_region(stack.bottom(), Stack::kBytes);
    const std::string found = state.error.empty() ? races::findings() : state.error;
    if (!found.empty())
        throw std::runtime_error(
            std::string(kernel) + ": " + found +
            format(" (launch %zu, MLPERF_FAST_EMULATE_SEED=%zu)", size_t(launches), size_t(seed())));
}

}  // namespace emulate
