// The race detector's side of a launch. Idle unless the kernels report their memory accesses (see races.cpp).
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace emulate {

int thread_number();  // of the running thread in its block; -1 outside of kernels
bool on_own_stack(const void* address);

namespace races {
// The static and the dynamic shared memory of this launch.
void launch_begins(const void* shared, const void* shared_end, const void* dynamic, size_t dynamic_bytes);
void block_begins(size_t threads);
void block_barrier();
void warp_barrier(const std::vector<int>& threads);
std::string findings();  // what this launch did wrong; empty when nothing
}  // namespace races

}  // namespace emulate
