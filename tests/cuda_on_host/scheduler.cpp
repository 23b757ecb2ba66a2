// Runs a kernel: its blocks one after another, the threads of a block as fibres. See cuda_on_host.h.
#include "cuda_on_host.h"
#include "fiber.h"
#include "schedule.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Where the linker put the variables declared __shared__; absent when there is none.
extern "C" unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

namespace cuda_on_host {

const Indices* current_indices = nullptr;

namespace {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

const char* name_of(Collective kind) {
  static const char* const names[] = {"__syncwarp",      "__shfl_sync",       "__shfl_up_sync",    "__shfl_down_sync",
                                      "__shfl_xor_sync", "__ballot_sync",     "__any_sync",        "__all_sync",
                                      "__reduce_add_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_or_sync",
                                      "__reduce_and_sync"};
  return names[static_cast<int>(kind)];
}

struct Thread {
  Fiber fiber;
  Indices indices;
  State state = State::kReady;
  const char* file = "";
  int line = 0;
  // At a barrier.
  Barrier barrier = Barrier::kPlain;
  int predicate = 0;
  // At a collective; `value` is overwritten by what it gives this lane.
  Collective collective = Collective::kSync;
  unsigned mask = 0;
  uint64_t value = 0;
  int argument = 0;
  int width = kLanes;
};

class Launch {
 public:
  Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body)
      : kernel_(kernel), grid_(grid), block_(block), shared_bytes_(shared_bytes), body_(body),
        schedule_(Schedule::from_environment()), random_(schedule_.number) {
    num_threads_ = static_cast<int>(block.x * block.y * block.z);
    if (num_threads_ < 1 || num_threads_ > kMaxThreads) throw std::runtime_error(where() + "block size out of range");
    num_warps_ = (num_threads_ + kLanes - 1) / kLanes;
    threads_.resize(num_threads_);
    ready_.resize(num_warps_);
    priority_.resize(num_warps_);
    // Of exactly the size asked for, and new, so that the address sanitizer sees an access behind it.
    void* shared = nullptr;
    if (shared_bytes > 0 && posix_memalign(&shared, 16, shared_bytes) != 0) throw std::bad_alloc();
    shared_.reset(static_cast<unsigned char*>(shared));
  }

  void run() {
    const uint64_t num_blocks = static_cast<uint64_t>(grid_.x) * grid_.y * grid_.z;
    std::vector<uint32_t> order;
    if (schedule_.kind == Schedule::Kind::kRandom && num_blocks <= (1u << 20)) {
      order.resize(num_blocks);
      for (uint64_t b = 0; b < num_blocks; ++b) order[b] = static_cast<uint32_t>(b);
      std::shuffle(order.begin(), order.end(), random_);
    }
    for (uint64_t b = 0; b < num_blocks; ++b) {
      run_block(!order.empty() ? order[b] : schedule_.kind == Schedule::Kind::kAhead ? num_blocks - 1 - b : b);
    }
  }

  void* shared() { return shared_.get(); }

  int barrier(Barrier kind, int predicate, const char* file, int line) {
    Thread& me = *current_;
    me.barrier = kind, me.predicate = predicate, me.file = file, me.line = line;
    wait(me, State::kAtBarrier);
    ++num_at_barrier_;
    if (num_at_barrier_ == num_live_) release_barrier();
    leave_unless_next(me);
    return me.predicate;
  }

  uint64_t collective(Collective kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                      int line) {
    Thread& me = *current_;
    me.collective = kind, me.mask = mask, me.value = value, me.argument = argument, me.width = width;
    me.file = file, me.line = line;
    const int index = static_cast<int>(&me - threads_.data());
    if ((mask >> (index % kLanes) & 1) == 0) fail(me, "is not in the mask it gives");
    if (width < 1 || width > kLanes || (width & (width - 1)) != 0) fail(me, "gives a width that is no power of two");
    wait(me, State::kAtCollective);
    if (all_arrived(index / kLanes, me)) complete(index / kLanes, me);
    leave_unless_next(me);
    return me.value;
  }

  void finish() {
    Thread& me = *current_;
    wait(me, State::kDone);
    --num_live_;
    if (num_live_ > 0 && num_at_barrier_ == num_live_) release_barrier();
    leave_for_good(me.fiber);
  }

  void call_body() { body_(); }

 private:
  struct Free {
    void operator()(unsigned char* pointer) const { std::free(pointer); }
  };

  std::string where() const { return std::string("cuda_on_host: kernel ") + kernel_ + ": "; }

  std::string describe(const Thread& thread) const {
    std::ostringstream text;
    const Indices& at = thread.indices;
    text << "block " << at.block.x << ", thread " << &thread - threads_.data();
    if (thread.state == State::kDone) {
      text << " has returned";
    } else if (thread.state == State::kAtBarrier) {
      text << " waits at __syncthreads (" << thread.file << ":" << thread.line << ")";
    } else {
      text << " at " << name_of(thread.collective) << " (" << thread.file << ":" << thread.line << ", mask 0x"
           << std::hex << thread.mask << std::dec << ")";
    }
    return text.str();
  }

  // Never returns: the fibres of this launch are abandoned and run() throws.
  [[noreturn]] void fail(Thread& me, const std::string& what) {
    me.state = State::kAtCollective;
    error_ = where() + describe(me) + ": " + what;
    leave_for_good(me.fiber);
    __builtin_unreachable();
  }

  void wait(Thread& me, State state) {
    me.state = state;
    const int index = static_cast<int>(&me - threads_.data());
    ready_[index / kLanes] &= ~(1u << (index % kLanes));
  }

  void wake(Thread& thread) {
    thread.state = State::kReady;
    const int index = static_cast<int>(&thread - threads_.data());
    ready_[index / kLanes] |= 1u << (index % kLanes);
  }

  // The last to arrive goes on at once in the simple order only.
  void leave_unless_next(Thread& me) {
    if (me.state != State::kReady || schedule_.kind != Schedule::Kind::kRound) switch_to_scheduler(me.fiber);
  }

  void release_barrier() {
    const Thread* first = nullptr;
    int any = 0, all = 1, count = 0;
    for (const Thread& thread : threads_) {
      if (thread.state != State::kAtBarrier) continue;
      if (first == nullptr) first = &thread;
      const bool same_place = thread.line == first->line && std::strcmp(thread.file, first->file) == 0;
      if (!same_place || thread.barrier != first->barrier) {
        error_ = where() + describe(thread) + ", but " + describe(*first) + ": different barriers";
        return;
      }
      any |= thread.predicate != 0, all &= thread.predicate != 0, count += thread.predicate != 0;
    }
    num_at_barrier_ = 0;
    for (Thread& thread : threads_) {
      if (thread.state != State::kAtBarrier) continue;
      thread.predicate = thread.barrier == Barrier::kOr ? any : thread.barrier == Barrier::kAnd ? all : count;
      wake(thread);
    }
    draw_priorities();
  }

  static bool together(const Thread& a, const Thread& b) {
    return a.state == State::kAtCollective && a.mask == b.mask && a.collective == b.collective;
  }

  bool all_arrived(int warp, const Thread& me) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((me.mask >> lane & 1) == 0) continue;
      const int index = warp * kLanes + lane;
      if (index >= num_threads_) return false;
      const Thread& other = threads_[index];
      if (!together(other, me)) return false;
    }
    return true;
  }

  void complete(int warp, Thread& me) {
    Thread* const lanes = &threads_[warp * kLanes];
    const unsigned mask = me.mask;
    uint64_t values[kLanes] = {};
    uint64_t sum = 0, all_bits = ~0ull, any_bit = 0, least = ~0ull, most = 0;
    unsigned ballot = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      const uint64_t value = values[lane] = lanes[lane].value;
      sum += value, all_bits &= value, any_bit |= value, least = std::min(least, value), most = std::max(most, value);
      if (value != 0) ballot |= 1u << lane;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      Thread& thread = lanes[lane];
      switch (thread.collective) {
        case Collective::kSync: break;
        case Collective::kBallot: thread.value = ballot; break;
        case Collective::kAny: thread.value = ballot != 0; break;
        case Collective::kAll: thread.value = ballot == mask; break;
        case Collective::kReduceAdd: thread.value = sum; break;
        case Collective::kReduceMin: thread.value = least; break;
        case Collective::kReduceMax: thread.value = most; break;
        case Collective::kReduceOr: thread.value = any_bit; break;
        case Collective::kReduceAnd: thread.value = all_bits; break;
        default: {
          const int source = source_lane(thread, lane);
          if ((mask >> source & 1) == 0) {
            error_ = where() + describe(thread) + ": reads lane " + std::to_string(source) + " outside of the mask";
          }
          thread.value = values[source];
        }
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if (mask >> lane & 1) wake(lanes[lane]);
    }
  }

  static int source_lane(const Thread& thread, int lane) {
    const int begin = lane & ~(thread.width - 1), end = begin + thread.width;
    switch (thread.collective) {
      case Collective::kShuffle: return begin + (thread.argument & (thread.width - 1));
      case Collective::kShuffleUp: return lane - thread.argument < begin ? lane : lane - thread.argument;
      case Collective::kShuffleDown: return lane + thread.argument >= end ? lane : lane + thread.argument;
      default: return (lane ^ thread.argument) >= end ? lane : lane ^ thread.argument;
    }
  }

  void draw_priorities() {
    for (int warp = 0; warp < num_warps_; ++warp) priority_[warp] = warp;
    if (schedule_.kind == Schedule::Kind::kRandom) std::shuffle(priority_.begin(), priority_.end(), random_);
    if (schedule_.kind == Schedule::Kind::kAhead) std::swap(priority_[0], priority_[schedule_.number % num_warps_]);
  }

  Thread* next() {
    if (schedule_.kind == Schedule::Kind::kRound) {
      for (int step = 0; step <= num_warps_; ++step) {
        const int warp = (last_ / kLanes + step) % num_warps_;
        unsigned lanes = ready_[warp];
        // The rest of the warp that ran last comes first, its beginning at the end.
        if (step == 0) lanes &= last_ % kLanes == kLanes - 1 ? 0u : ~0u << (last_ % kLanes + 1);
        if (lanes != 0) return at(warp, __builtin_ctz(lanes));
      }
      return nullptr;
    }
    if (schedule_.kind == Schedule::Kind::kRandom && random_() % 128 == 0) draw_priorities();
    for (const int warp : priority_) {
      unsigned lanes = ready_[warp];
      if (lanes == 0) continue;
      if (schedule_.kind == Schedule::Kind::kRandom) {
        for (unsigned skip = random_() % __builtin_popcount(lanes); skip > 0; --skip) lanes &= lanes - 1;
      }
      return at(warp, __builtin_ctz(lanes));
    }
    return nullptr;
  }

  Thread* at(int warp, int lane) {
    last_ = warp * kLanes + lane;
    return &threads_[last_];
  }

  __attribute__((no_sanitize("address"))) static void fill(volatile unsigned char* begin, volatile unsigned char* end) {
    for (; begin != end; ++begin) *begin = 0xff;
  }

  void run_block(uint64_t block) {
    fill(__start_cuda_shared, __stop_cuda_shared);
    if (shared_) fill(shared_.get(), shared_.get() + shared_bytes_);
    const uint3 block_index = {static_cast<unsigned>(block % grid_.x), static_cast<unsigned>(block / grid_.x % grid_.y),
                               static_cast<unsigned>(block / grid_.x / grid_.y)};
    std::fill(ready_.begin(), ready_.end(), 0);
    for (int t = 0; t < num_threads_; ++t) {
      const unsigned u = static_cast<unsigned>(t);
      const uint3 thread_index = {u % block_.x, u / block_.x % block_.y, u / block_.x / block_.y};
      threads_[t].indices = {thread_index, block_index, block_, grid_};
      prepare(threads_[t].fiber, t);
      wake(threads_[t]);
    }
    num_live_ = num_threads_, num_at_barrier_ = 0, last_ = num_threads_ - 1;
    draw_priorities();
    while (num_live_ > 0) {
      Thread* const thread = next();
      if (thread == nullptr) throw_stuck();
      current_ = thread;
      current_indices = &thread->indices;
      switch_to(thread->fiber);
      if (!error_.empty()) throw_error(error_);
    }
  }

  [[noreturn]] void throw_stuck() {
    const Thread* stuck = nullptr;
    for (const Thread& thread : threads_) {
      if (thread.state == State::kAtBarrier && stuck == nullptr) stuck = &thread;
      if (thread.state != State::kAtCollective) continue;
      const int warp = static_cast<int>(&thread - threads_.data()) / kLanes;
      for (int lane = 0; lane < kLanes; ++lane) {
        if ((thread.mask >> lane & 1) == 0) continue;
        const int index = warp * kLanes + lane;
        if (index >= num_threads_) throw_error(where() + describe(thread) + ": the mask names lanes the block lacks");
        const Thread& other = threads_[index];
        if (together(other, thread)) continue;
        throw_error(where() + describe(thread) + " waits for ever, since " + describe(other));
      }
    }
    for (const Thread& thread : threads_) {
      if (thread.state == State::kReady) continue;
      if (stuck != nullptr && thread.state == State::kAtCollective) {
        throw_error(where() + describe(*stuck) + " waits for ever, since " + describe(thread));
      }
    }
    throw_error(where() + "no thread can run");
  }

  [[noreturn]] void throw_error(const std::string& message) {
    abandon_fibers();
    throw std::runtime_error(message);
  }

  const char* kernel_;
  dim3 grid_, block_;
  size_t shared_bytes_;
  const std::function<void()>& body_;
  Schedule schedule_;
  std::minstd_rand random_;
  int num_threads_ = 0, num_warps_ = 0, num_live_ = 0, num_at_barrier_ = 0, last_ = 0;
  std::vector<Thread> threads_;
  std::vector<unsigned> ready_;
  std::vector<int> priority_;
  std::unique_ptr<unsigned char, Free> shared_;
  Thread* current_ = nullptr;
  std::string error_;
};

Launch* current_launch = nullptr;
std::mutex one_launch;
int64_t num_launches = 0;

}  // namespace

void fiber_main() {
  current_launch->call_body();
  current_launch->finish();
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  Launch running(kernel, grid, block, shared_bytes, body);
  current_launch = &running;
  ++num_launches;
  running.run();
}

void* dynamic_shared() { return current_launch->shared(); }

int block_barrier(Barrier kind, int predicate, const char* file, int line) {
  return current_launch->barrier(kind, predicate, file, line);
}

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int argument, int width, const char* file,
                         int line) {
  return current_launch->collective(kind, mask, value, argument, width, file, line);
}

// For a test that wants to know that kernels ran.
extern "C" __attribute__((visibility("default"))) int64_t cuda_on_host_num_launches() { return num_launches; }

}  // namespace cuda_on_host
