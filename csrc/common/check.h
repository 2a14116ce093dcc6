// Argument checks. The exceptions become Python's: invalid_argument a ValueError, out_of_range an IndexError.
#pragma once
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

// The integer address of a tensor's data as a pointer; 0 is an absent tensor.
template <class Value>
Value* pointer(uintptr_t address) {
    return reinterpret_cast<Value*>(address);
}

inline void require_at_least(const char* op, const char* name, int64_t value, int64_t least) {
    if (value < least)
        throw std::invalid_argument(std::string(op) + ": " + name + " is " + std::to_string(value) +
                                    "; expected at least " + std::to_string(least));
}

// a * b, refusing a product that int64 can't hold.
inline int64_t checked_product(const char* op, int64_t a, int64_t b) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product))
        throw std::invalid_argument(std::string(op) + ": " + std::to_string(a) + " x " + std::to_string(b) +
                                    " elements overflow a 64-bit count");
    return product;
}
