#pragma once

#include "bfloat16.h"
#include "float16.h"
#include "stored_as.h"

// Calls run(E{}) with the type that is stored.
template <class Run>
void as_stored(int stored_as, Run&& run) {
    if (stored_as == kFloat32) return run(float{});
    if (stored_as == kBFloat16) return run(BFloat16{});
    run(Float16{});
}
