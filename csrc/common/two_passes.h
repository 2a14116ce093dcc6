// Two passes over each of many tensors, the second needing what the first summed up over the whole tensor (its norms),
// with the tensor still in the cache where it fits.
//
// There is no barrier, at which all threads would wait for one that isn't running just then. A tensor of at most kChunk
// elements is one thread's, both passes in a row. A larger one is cut into chunks that any thread may take. All tasks
// stand in one list, in which a chunk's second pass comes after its tensor's first pass and some other tasks, and the
// threads take them in this order: a second pass seldom has to wait, and never for a task that nobody has taken.
// It goes through the chunks backwards: of a tensor larger than the cache it meets first what is still there.
#pragma once
#include <sched.h>

#include <atomic>
#include <memory>
#include <vector>

#include "check.h"
#include "multi_tensor.h"
#include "parallel.h"

struct TwoSums {
    double a = 0, b = 0;
    void add(const TwoSums& other) { a += other.a, b += other.b; }
};

class TaskList {
   public:
    static constexpr int64_t kMostScratch = 4 << 20;  // floats: 16 MiB, which a cache of many cores keeps

    struct Task {
        enum Kind { kBoth, kFirst, kSecond } kind;
        int64_t first, last;   // kBoth: the tensors first .. last
        int64_t large, chunk;  // else: a chunk of a large tensor
    };
    struct Large {
        int64_t tensor, chunks, first_slot;  // its sums have the slots first_slot .. first_slot + chunks
        int64_t scratch;                     // which of two scratch arrays, or -1: too large for one
        int64_t before;                      // the large tensor that had this scratch array before, or -1
    };

    TaskList(const char* op, const int64_t* sizes, int64_t count, int64_t ahead) : ahead_(ahead) {
        require_at_least(op, "count", count, 0);
        for (int64_t i = 0; i < count; ++i) {
            require_at_least(op, "a tensor's size", sizes[i], 0);
            if (sizes[i] > kChunk) add_large(i, sizes[i]);
        }
        // Small neighbours together, a quarter of a chunk. They come last: the shortest tasks end at the same time.
        for (int64_t first = 0, last = 0; last < count; first = last) {
            for (int64_t held = 0; last < count && (held += sizes[last]) <= kChunk / 4;) ++last;
            if (first == last && sizes[last] <= kChunk) ++last;
            if (first < last)
                add({Task::kBoth, first, last, 0, 0});
            else
                ++last;
        }
        add_second_passes(INT64_MAX);
    }

    std::vector<Task> tasks;
    std::vector<Large> large;
    int64_t slots = 0, scratch = 0;  // floats that each of the two scratch arrays needs

   private:
    void add_large(int64_t tensor, int64_t size) {
        const int64_t number = static_cast<int64_t>(large.size()), chunks = (size + kChunk - 1) / kChunk;
        Large one{tensor, chunks, slots, -1, -1};
        if (size <= kMostScratch) {
            one.scratch = with_scratch_.size() % 2;
            scratch = std::max(scratch, size);
            if (with_scratch_.size() >= 2) {
                one.before = *(with_scratch_.end() - 2);
                while (next_ <= one.before) add_second_pass();
            }
            with_scratch_.push_back(number);
        }
        large.push_back(one);
        slots += chunks;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) add({Task::kFirst, 0, 0, number, chunk});
        due_.push_back(added_ + ahead_);
    }
    void add(const Task& task) {
        tasks.push_back(task);
        add_second_passes(++added_);
    }
    void add_second_passes(int64_t now) {
        while (next_ < static_cast<int64_t>(due_.size()) && due_[next_] <= now) add_second_pass();
    }
    void add_second_pass() {
        for (int64_t chunk = large[next_].chunks - 1; chunk >= 0; --chunk)
            tasks.push_back({Task::kSecond, 0, 0, next_, chunk});
        ++next_;
    }

    int64_t ahead_, added_ = 0, next_ = 0;  // next_: the large tensor whose second pass is the next to be added
    std::vector<int64_t> due_;              // by large tensor: after how many other tasks its second pass may come
    std::vector<int64_t> with_scratch_;
};

// first(i, begin, end, scratch) -> TwoSums over the elements begin .. end of tensor i
// between(i, sums) -> a float, from the sums over the whole tensor
// second(i, begin, end, value, scratch), with between's value
//
// scratch: room for end - begin floats, which `second` finds as `first` left them; nullptr for a tensor that is too
// large. They must not throw. Sums are added by chunk, in order: the same for any number of threads.
template <class First, class Between, class Second>
void two_passes(const char* op, uintptr_t sizes, int64_t count, First&& first, Between&& between, Second&& second) {
    const int64_t* size = pointer<int64_t>(sizes);
    const TaskList list(op, size, count, omp_get_max_threads());
    const int64_t tasks = static_cast<int64_t>(list.tasks.size());
    const int threads = static_cast<int>(std::min<int64_t>(tasks, omp_get_max_threads()));
    if (threads == 0) return;
    struct Progress {
        std::atomic<int64_t> first_left, second_left;  // chunks
        std::atomic<bool> between_done{false};
        float value;
    };
    std::vector<Progress> progress(list.large.size());
    for (size_t i = 0; i < progress.size(); ++i)
        progress[i].first_left = progress[i].second_left = list.large[i].chunks;
    std::vector<TwoSums> sums(list.slots);
    const std::unique_ptr<float[]> room(new float[threads * kChunk + 2 * list.scratch]);
    std::atomic<int64_t> next{0};
    const auto wait_until = [](auto&& done) {
        for (int turns = 0; !done(); ++turns)
            if (turns > 1000) sched_yield();  // the thread that is at it may need this core
    };
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float* own = room.get() + 2 * list.scratch + omp_get_thread_num() * kChunk;
        for (int64_t at; (at = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const TaskList::Task& task = list.tasks[at];
            if (task.kind == TaskList::Task::kBoth) {
                for (int64_t i = task.first; i < task.last; ++i)
                    second(i, int64_t{0}, size[i], between(i, first(i, int64_t{0}, size[i], own)), own);
                continue;
            }
            const TaskList::Large& one = list.large[task.large];
            Progress& its = progress[task.large];
            const int64_t i = one.tensor, begin = task.chunk * kChunk, end = std::min(size[i], begin + kChunk);
            float* scratch = one.scratch < 0 ? nullptr : room.get() + one.scratch * list.scratch + begin;
            if (task.kind == TaskList::Task::kFirst) {
                if (one.before >= 0)
                    wait_until([&] { return progress[one.before].second_left.load(std::memory_order_acquire) == 0; });
                sums[one.first_slot + task.chunk] = first(i, begin, end, scratch);
                if (its.first_left.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
                TwoSums all;
                for (int64_t chunk = 0; chunk < one.chunks; ++chunk) all.add(sums[one.first_slot + chunk]);
                its.value = between(i, all);
                its.between_done.store(true, std::memory_order_release);
            } else {
                wait_until([&] { return its.between_done.load(std::memory_order_acquire); });
                second(i, begin, end, its.value, scratch);
                its.second_left.fetch_sub(1, std::memory_order_acq_rel);
            }
        }
    }
}
