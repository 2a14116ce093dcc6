// Finds data races and reads of unwritten shared memory. Kernels compiled with -fsanitize=thread call __tsan_read4 and
// the like before each access; here these functions are ours, not ThreadSanitizer's. Without that flag nobody calls
// them, and nothing is recorded.
//
// Two accesses race when they touch the same byte, come from different threads, at least one writes, not both are
// atomic, and nothing orders them. Threads of a block are ordered by __syncthreads, lanes of a warp also by __syncwarp;
// shuffles and votes order nothing (CUDA C++ Programming Guide, "Warp Shuffle Functions"). Blocks are ordered only
// where one publishes, by __threadfence and then an atomic, and the other does an atomic before it reads.
//
// Each aligned word of 8 bytes remembers its last four accesses, as ThreadSanitizer does; a race that needs an older
// one is missed in this run and likely found under another order of threads.
#include "races.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulate.h"

namespace emulate {
namespace {

constexpr int kWarp = 32;
constexpr int kSlots = 4;
constexpr size_t kPage = 4096;
constexpr size_t kMostFindings = 8;

enum Kind : uint8_t { kRead, kWrite, kAtomic };

struct Access {
    const void* pc;
    uint32_t block = 0;  // 0: none; blocks are numbered through, so that those of earlier launches are older
    uint32_t epoch;      // __syncthreads before it in its block
    uint32_t clock;      // __syncwarps of its thread before it
    uint16_t thread;
    uint16_t fences;  // __threadfences of its thread before it
    uint8_t bytes;    // one bit for each byte of the word
    Kind kind;
};
struct Word {
    Access slots[kSlots];
    uint8_t next = 0;
};
struct Page {
    Word words[kPage / 8];
};

struct ThreadClock {
    uint32_t seen[kWarp] = {};  // of each lane of its warp, the clock up to which its accesses come before mine
    uint16_t fences = 0;
    uint32_t fence_epoch = 0;
    bool atomics = false;
};
struct Published {  // by a block: what it wrote before a fence that came before an atomic
    uint32_t before_epoch = 0;
    std::vector<uint16_t> fences;  // of each thread
};

struct Range {
    const char *begin = nullptr, *end = nullptr;
    std::vector<uint32_t> written;  // for each byte, the last block that wrote it
    bool holds(const char* p) const { return p >= begin && p < end; }
};

struct Finding {
    const void *pc, *other_pc;
    std::string text;
};

bool instrumented = false;
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_page = 0;
Page* last = nullptr;
Range shared[2];  // static, dynamic
uint32_t first_block = 1, block = 0, epoch = 0, last_atomic_epoch = 0;
bool block_has_atomics = false;
std::vector<ThreadClock> clocks;
std::map<uint32_t, Published> published;
std::vector<Finding> found;
std::set<std::pair<const void*, const void*>> known;

Word& word_at(uintptr_t address) {
    const uintptr_t number = address / kPage;
    if (number != last_page || !last) {
        auto& page = pages[number];
        if (!page) page = std::make_unique<Page>();
        last = page.get();
        last_page = number;
    }
    return last->words[address % kPage / 8];
}

// Whether `earlier` surely came before what the running thread does now.
bool ordered(const Access& earlier, int thread) {
    if (earlier.block == block) {
        if (earlier.thread == thread || earlier.epoch < epoch) return true;
        return earlier.thread / kWarp == thread / kWarp && clocks[thread].seen[earlier.thread % kWarp] >= earlier.clock;
    }
    const bool acquired = clocks[thread].atomics || (block_has_atomics && last_atomic_epoch < epoch);
    const auto release = published.find(earlier.block);
    return acquired && release != published.end() &&
           (earlier.epoch < release->second.before_epoch || earlier.fences < release->second.fences[earlier.thread]);
}

void report(const Access& now, const Access* earlier, bool of_block) {
    const void* const other = earlier ? earlier->pc : nullptr;
    if (found.size() == kMostFindings || !known.insert(std::minmax(now.pc, other)).second) return;
    static const char* const does[] = {"reads", "writes", "atomically updates"};
    static const char* const did[] = {"has read", "has written", "has atomically updated"};
    const std::string me = "thread " + std::to_string(now.thread);
    if (!earlier) {
        found.push_back({now.pc, nullptr, me + " reads shared memory that nobody has written in this block"});
        return;
    }
    const bool other_block = earlier->block != now.block;
    found.push_back({now.pc, other,
                     me + " " + does[now.kind] + (of_block ? " shared" : " global") + " memory that thread " +
                         std::to_string(earlier->thread) + (other_block ? " of another block " : " ") +
                         did[earlier->kind] + ", and no " +
                         (other_block ? "fence and atomic order" : "barrier orders") + " the two"});
}

void access(const void* address, size_t bytes, Kind kind, const void* pc) {
    const int thread = thread_number();
    if (thread < 0 || on_own_stack(address)) return;
    const char* p = static_cast<const char*>(address);
    const char* const end = p + bytes;
    Range* range = shared[0].holds(p) ? &shared[0] : shared[1].holds(p) ? &shared[1] : nullptr;
    Access now{
        pc, block, epoch, clocks[thread].seen[thread % kWarp], static_cast<uint16_t>(thread), clocks[thread].fences,
        0,  kind};
    if (range) {
        const size_t offset = p - range->begin, stop = std::min<size_t>(offset + bytes, range->written.size());
        for (size_t i = offset; i < stop; ++i) {
            if (kind != kWrite && range->written[i] != block) report(now, nullptr, true);
            if (kind != kRead) range->written[i] = block;
        }
    }
    while (p < end) {
        const uintptr_t start = reinterpret_cast<uintptr_t>(p) & ~uintptr_t{7};
        const int from = reinterpret_cast<uintptr_t>(p) & 7;
        const int to = std::min<uintptr_t>(reinterpret_cast<uintptr_t>(end) - start, 8);
        now.bytes = static_cast<uint8_t>((0xff << from) & (0xff >> (8 - to)));
        Word& word = word_at(start);
        Access* place = nullptr;
        for (Access& slot : word.slots) {
            const bool stale = slot.block < first_block || (range && slot.block != block);
            if (stale) {
                place = &slot;
                continue;
            }
            if (slot.thread == thread && slot.block == block) {
                if (slot.kind == kind && (slot.bytes & ~now.bytes) == 0) place = &slot;
                continue;
            }
            const bool harmless = (slot.kind == kRead && kind == kRead) || (slot.kind == kAtomic && kind == kAtomic);
            if (!harmless && (slot.bytes & now.bytes) && !ordered(slot, thread)) report(now, &slot, range != nullptr);
        }
        if (!place) place = &word.slots[word.next++ % kSlots];
        *place = now;
        p = reinterpret_cast<const char*>(start + 8);
    }
}

// "sgd.cu:21" with what was inlined there before it, innermost first; the module's name and offset without addr2line.
std::string source_lines(const void* pc) {
    Dl_info info{};
    const auto* call = static_cast<const char*>(pc) - 1;  // pc is where the call returns to
    if (!dladdr(call, &info)) return "an unknown place";
    char command[1024], line[1024];
    const size_t offset = call - static_cast<const char*>(info.dli_fbase);
    std::snprintf(command, sizeof command, "LD_PRELOAD= addr2line -i -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                  offset);
    std::string lines;
    if (FILE* pipe = popen(command, "r")) {
        while (std::fgets(line, sizeof line, pipe)) {
            std::string text(line);
            text = text.substr(0, text.find_first_of(" \n"));  // without "(discriminator 2)"
            if (text.find("?") != std::string::npos || text.find("launch.cuh") == 0 || text.find("cuda.h") == 0 ||
                text.find("invoke.h") == 0)
                continue;
            lines += (lines.empty() ? "" : " in ") + text;
        }
        pclose(pipe);
    }
    if (!lines.empty()) return lines;
    std::snprintf(line, sizeof line, "%s+0x%zx", info.dli_fname, offset);
    return line;
}

}  // namespace

void atomic_access(const void* address, size_t bytes, const void* pc) {
    if (!instrumented) return;
    access(address, bytes, kAtomic, pc);
    const int thread = thread_number();
    ThreadClock& mine = clocks[thread];
    mine.atomics = block_has_atomics = true;
    last_atomic_epoch = epoch;
    Published& mine_and_others = published[block];
    mine_and_others.fences.resize(clocks.size());
    for (size_t t = 0; t < clocks.size(); ++t)
        if (static_cast<int>(t) == thread || clocks[t].fence_epoch < epoch)
            mine_and_others.fences[t] = std::max(mine_and_others.fences[t], clocks[t].fences);
    if (mine.fences) mine_and_others.before_epoch = std::max(mine_and_others.before_epoch, mine.fence_epoch);
}

void fence() {
    if (!instrumented) return;
    ThreadClock& mine = clocks[thread_number()];
    ++mine.fences;
    mine.fence_epoch = epoch;
}

namespace races {

void launch_begins(const void* begin, const void* end, const void* dynamic, size_t dynamic_bytes) {
    if (!instrumented) return;
    const auto set = [](Range& range, const void* from, size_t bytes) {
        range.begin = static_cast<const char*>(from);
        range.end = range.begin + bytes;
        range.written.assign(bytes, 0);
    };
    set(shared[0], begin, static_cast<const char*>(end) - static_cast<const char*>(begin));
    set(shared[1], dynamic, dynamic_bytes);
    pages.clear();
    last = nullptr;
    first_block = block + 1;
    published.clear();
    found.clear();
    known.clear();
}

void block_begins(size_t threads) {
    if (!instrumented) return;
    ++block;
    epoch = 0;
    block_has_atomics = false;
    clocks.assign(threads, {});
    for (size_t t = 0; t < threads; ++t) clocks[t].seen[t % kWarp] = 1;
}

void block_barrier() { ++epoch; }

void warp_barrier(const std::vector<int>& threads) {
    if (!instrumented) return;
    uint32_t joined[kWarp] = {};
    for (const int t : threads)
        for (int lane = 0; lane < kWarp; ++lane) joined[lane] = std::max(joined[lane], clocks[t].seen[lane]);
    for (const int t : threads) {
        std::copy(joined, joined + kWarp, clocks[t].seen);
        ++clocks[t].seen[t % kWarp];
    }
}

std::string findings() {
    std::string text;
    for (const Finding& finding : found) {
        text += "\n  " + finding.text + "\n    at " + source_lines(finding.pc);
        if (finding.other_pc) text += "\n    and " + source_lines(finding.other_pc);
    }
    return text;
}

}  // namespace races
}  // namespace emulate

// What -fsanitize=thread calls --------------------------------------------------------------------------------------

extern "C" {
void __tsan_init() { emulate::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_read_range(void* p, size_t n) { emulate::access(p, n, emulate::kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { emulate::access(p, n, emulate::kWrite, __builtin_return_address(0)); }
#define EMULATE_ACCESS(bytes)                                                                                    \
    void __tsan_read##bytes(void* p) { emulate::access(p, bytes, emulate::kRead, __builtin_return_address(0)); } \
    void __tsan_write##bytes(void* p) { emulate::access(p, bytes, emulate::kWrite, __builtin_return_address(0)); }
EMULATE_ACCESS(1)
EMULATE_ACCESS(2)
EMULATE_ACCESS(4)
EMULATE_ACCESS(8)
EMULATE_ACCESS(16)
}
