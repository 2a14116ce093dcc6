// Two ways to switch between stacks on one host thread: a few instructions on x86-64, ucontext elsewhere (which asks
// the kernel for the signal mask at each switch: half a microsecond rather than ten nanoseconds).
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__) || defined(EMULATE_UCONTEXT)
#include <ucontext.h>
#endif

// AddressSanitizer must know which stack is in use. Weak: null where the program runs without it.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
__attribute__((weak)) void __asan_unpoison_memory_region(const void* address, size_t size);
}

namespace emulate {

#if defined(__x86_64__) && !defined(EMULATE_UCONTEXT)

// Saves the callee-saved registers on this stack and its place in *from, and goes on where `to` was saved.
extern "C" void emulate_switch_stack(void** from, void* to);
asm(R"(
.text
.type emulate_switch_stack, @function
emulate_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulate_switch_stack, . - emulate_switch_stack
)");

struct Context {
    void* top = nullptr;
    void start(char* stack, size_t bytes, void (*entry)()) {
        void** place = reinterpret_cast<void**>(stack + bytes) - 1;  // entry finds rsp at 16 k + 8, as after a call
        *--place = reinterpret_cast<void*>(entry);
        for (int i = 0; i < 6; ++i) *--place = nullptr;
        top = place;
    }
    static void go(Context& from, Context& to) { emulate_switch_stack(&from.top, to.top); }
};

#else

struct Context {
    ucontext_t saved;
    void start(char* stack, size_t bytes, void (*entry)()) {
        getcontext(&saved);
        saved.uc_stack.ss_sp = stack;
        saved.uc_stack.ss_size = bytes;
        saved.uc_link = nullptr;
        makecontext(&saved, entry, 0);
    }
    static void go(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }
};

#endif

// A stack with an inaccessible page below, so that running over its end is a fault and not a corruption. Pages that
// nobody touches take no memory.
class Stack {
   public:
    static constexpr size_t kBytes = 256 << 10;  // AddressSanitizer prints its report on it
    Stack() {
        void* memory = mmap(nullptr, kBytes + guard(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(memory, guard(), PROT_NONE);
        memory_ = static_cast<char*>(memory);
    }
    Stack(const Stack&) = delete;
    Stack(Stack&& other) noexcept : memory_(other.memory_) { other.memory_ = nullptr; }
    ~Stack() {
        if (memory_) munmap(memory_, kBytes + guard());
    }
    char* bottom() const { return memory_ + guard(); }

   private:
    static size_t guard() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
    char* memory_;
};

}  // namespace emulate
