// Nothing yet tells of its memory accesses: no build instruments them.
#include "races.h"

#include "emulate.h"

namespace emulate {
void atomic_access(const void*, size_t) {}
void fence() {}
namespace races {
void launch_begins(const void*, const void*, const void*, size_t) {}
void block_begins() {}
void block_barrier() {}
void warp_barrier(const std::vector<int>&) {}
std::string findings() { return {}; }
}  // namespace races
}  // namespace emulate
