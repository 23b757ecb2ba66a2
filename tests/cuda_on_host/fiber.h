// Stackful fibres: one a thread of a block, on stacks that are kept for the life of the process.
#pragma once

#include <cstddef>

namespace cuda_on_host {

struct Fiber {
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;
  char* stack = nullptr;
};

// Every fibre runs this; it ends by leave_for_good.
void fiber_main();

// Gives the fibre stack number `index` and sets it to the beginning of fiber_main.
void prepare(Fiber& fiber, int index);

// From the scheduler into a fibre, until that gives back control.
void switch_to(Fiber& fiber);
void switch_to_scheduler(Fiber& fiber);
void leave_for_good(Fiber& fiber);

// After an error: what unfinished frames left poisoned is usable again.
void abandon_fibers();

}  // namespace cuda_on_host
