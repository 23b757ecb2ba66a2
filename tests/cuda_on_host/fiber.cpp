// Switches between stacks. swapcontext would do, but it saves the signal mask with a system call each time.
#include "fiber.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifndef __x86_64__
#error "the fibres of cuda_on_host are written for x86-64"
#endif

// Saves the registers that a call must preserve, and the stack; continues where the other stack was left.
asm(R"(
.text
.p2align 4
.type cuda_on_host_switch, @function
cuda_on_host_switch:
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
.size cuda_on_host_switch, .-cuda_on_host_switch
)");
extern "C" __attribute__((visibility("hidden"))) void cuda_on_host_switch(void** save, void* load);

namespace cuda_on_host {

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kMaxFibers = 1024;

void* scheduler_stack_pointer = nullptr;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

char* stacks() {
  static char* const memory = [] {
    void* const mapped = mmap(nullptr, kStackBytes * kMaxFibers, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(mapped);
  }();
  return memory;
}

__attribute__((no_sanitize("address"))) void first_entry() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  fiber_main();
  __builtin_trap();
}

}  // namespace

__attribute__((no_sanitize("address"))) void prepare(Fiber& fiber, int index) {
  fiber.stack = stacks() + kStackBytes * static_cast<size_t>(index);
  // Six registers, the address that `ret` takes, and the alignment that a call leaves.
  auto** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 2;
  *top = reinterpret_cast<void*>(&first_entry);
  for (int r = 0; r < 6; ++r) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.fake_stack = nullptr;
}

void switch_to(Fiber& fiber) {
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
  cuda_on_host_switch(&scheduler_stack_pointer, fiber.stack_pointer);
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

void switch_to_scheduler(Fiber& fiber) {
  __sanitizer_start_switch_fiber(&fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
  cuda_on_host_switch(&fiber.stack_pointer, scheduler_stack_pointer);
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void leave_for_good(Fiber& fiber) {
  __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
  cuda_on_host_switch(&fiber.stack_pointer, scheduler_stack_pointer);
}

void abandon_fibers() { __asan_unpoison_memory_region(stacks(), kStackBytes * kMaxFibers); }

}  // namespace cuda_on_host
