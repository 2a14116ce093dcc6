// Parallel loops on OpenMP. torch and this module share one OpenMP runtime, so torch.set_num_threads rules both.
#pragma once
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

// An exception must not leave an OpenMP region. run() keeps the first one and skips what comes after it; rethrow()
// throws it on the calling thread.
class FirstError {
   public:
    template <class Body>
    void run(Body&& body) noexcept {
        if (failed_.load(std::memory_order_relaxed)) return;
        try {
            body();
        } catch (...) {
            if (!failed_.exchange(true)) error_ = std::current_exception();
        }
    }
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

   private:
    std::atomic<bool> failed_{false};
    std::exception_ptr error_;
};

// Calls body(first, last) on each thread with one contiguous share of [0, count), none smaller than `grain` unless
// there is only one.
template <class Body>
void parallel_shares(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    const int64_t most = (count + grain - 1) / grain;
    const int64_t threads = most < omp_get_max_threads() ? most : omp_get_max_threads();
    FirstError error;
#pragma omp parallel num_threads(static_cast<int>(threads)) if (threads > 1)
    {
        // The runtime may give fewer threads than were asked for.
        const int64_t given = omp_get_num_threads(), me = omp_get_thread_num();
        error.run([&] { body(count * me / given, count * (me + 1) / given); });
    }
    error.rethrow();
}

// The same in pieces of decreasing size, multiples of `least`: whichever thread is free takes the next one. Where
// bodies need no share of their own: of two equal shares, one would wait for the other's thread to be woken, and then
// be woken.
template <class Body>
void parallel_pieces(int64_t count, int64_t grain, int64_t least, Body&& body) {
    std::atomic<int64_t> next{0};
    parallel_shares(count, grain, [&](int64_t, int64_t) {
        const int64_t given = omp_get_num_threads(), parts = given > 1 ? 2 * given : 1;
        for (int64_t first = next; first < count;) {
            const int64_t last = std::min(count, first + std::max((count - first) / parts / least, int64_t{1}) * least);
            if (!next.compare_exchange_weak(first, last)) continue;  // `first` is what another thread left
            body(first, last);
            first = next;
        }
    });
}

// Calls body(task) for each task in [0, tasks); whichever thread is free takes the next one.
template <class Body>
void parallel_tasks(int64_t tasks, Body&& body) {
    FirstError error;
#pragma omp parallel for schedule(dynamic, 1) if (tasks > 1)
    for (int64_t task = 0; task < tasks; ++task) error.run([&] { body(task); });
    error.rethrow();
}
