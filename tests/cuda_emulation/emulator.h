// Executes thread blocks on the CPU, one fiber to a thread,
// so that kernels run under sanitizers without a GPU.
//
// Threads run one after the other and hand over at collective operations alone; what
// a GPU would leave to chance is checked instead: every access to shared memory is
// held against all others since the last barrier, asynchronous copies land only at
// their wait, and shared memory starts as NaN. Any violation ends the program.
#pragma once

#include <ucontext.h>
#include <vector_types.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {

constexpr int kMostThreads = 1024;  // of a block

struct Copy {
  uint32_t at, bytes;
  const void* from;
  bool inside;
};

// A point of execution to return to. Unlike swapcontext a jump costs no system call.
struct Place {
  void* words[5];
};

__attribute__((noinline, noreturn, no_sanitize("address"))) inline void jump(Place& to) {
  __builtin_longjmp(to.words, 1);
}

// Stops at `here`, which someone jumps to later, and goes on at `to`.
__attribute__((noinline, no_sanitize("address"))) inline void jump(Place& here, Place& to) {
  if (__builtin_setjmp(here.words) == 0) jump(to);
}

// A fiber, which runs the kernel once for each block: to make one anew takes as long as a small kernel runs.
struct Thread {
  static constexpr size_t kStack = 160 << 10;
  ucontext_t context;  // of its start
  Place place;
  std::unique_ptr<char[]> stack = std::make_unique_for_overwrite<char[]>(kStack);
  bool started = false, done = false;
  const unsigned* watched = nullptr;  // the thread waits while this is `seen`
  unsigned seen = 0;
  unsigned epoch = 0;  // counts barriers, on from the epochs of all blocks before
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  int arrived = 0;
  unsigned generation = 0;
  uint32_t in[32][6], out[32][4];
};

// Who touched four bytes of shared memory since when.
struct Word {
  static constexpr int kNobody = -1, kMany = -2;
  unsigned written = 0, read = 0;
  int writer = kNobody, reader = kNobody;
};

struct Block {
  std::vector<uint8_t> shared;
  std::vector<Word> words;  // what other blocks left there is of other epochs
  std::vector<Warp> warps;
  int threads = 0, arrived = 0;
  unsigned generation = 0;
};

inline std::vector<Thread> threads;
inline Block block;
inline unsigned next_epoch = 1;
inline ucontext_t unused;
inline Place scheduler;
inline int current = 0;
inline std::function<void()> body;

[[noreturn]] inline void fail(const char* what, uint32_t at = 0) {
  std::printf("violation: %s (thread %d of block %u,%u,%u, byte %u of %zu)\n", what, current, blockIdx.x,
              blockIdx.y, blockIdx.z, at, block.shared.size());
  std::fflush(stdout);
  std::_Exit(3);
}

inline void resume_others(const unsigned* watched, unsigned seen) {
  Thread& self = threads[current];
  self.watched = watched;
  self.seen = seen;
  while (*watched == seen) jump(self.place, scheduler);
}

inline void block_barrier() {
  next_epoch = std::max(next_epoch, ++threads[current].epoch + 1);
  const unsigned seen = block.generation;
  if (++block.arrived == block.threads) {
    block.arrived = 0;
    ++block.generation;
  } else {
    resume_others(&block.generation, seen);
  }
}

// Each lane gives `count` words; `operation`, of the warp,
// is run when all are there and leaves each lane its words.
template <typename Operation>
const uint32_t* collective(const uint32_t* in, int count, Operation operation) {
  Warp& warp = block.warps[current / 32];
  const int lane = current % 32;
  std::memcpy(warp.in[lane], in, count * sizeof(uint32_t));
  const unsigned seen = warp.generation;
  if (++warp.arrived == 32) {
    operation(warp);
    warp.arrived = 0;
    ++warp.generation;
  } else {
    resume_others(&warp.generation, seen);
  }
  return warp.out[lane];
}

inline void check(uint32_t at, uint32_t bytes) {
  if (at % bytes != 0) fail("misaligned access to shared memory", at);
  if (at + bytes > block.shared.size()) fail("access beyond shared memory", at);
}

inline void note_read(uint32_t at, uint32_t bytes) {
  check(at, bytes);
  const unsigned epoch = threads[current].epoch;
  for (uint32_t word = at / 4; word < (at + bytes + 3) / 4; ++word) {
    Word& w = block.words[word];
    if (w.writer >= 0 && w.writer != current && w.written == epoch)
      fail("read of what another thread writes", at);
    w.reader = w.read == epoch && w.reader != Word::kNobody && w.reader != current ? Word::kMany : current;
    w.read = epoch;
  }
}

inline void note_write(uint32_t at, uint32_t bytes) {
  check(at, bytes);
  const unsigned epoch = threads[current].epoch;
  for (uint32_t word = at / 4; word < (at + bytes + 3) / 4; ++word) {
    Word& w = block.words[word];
    if (w.reader != Word::kNobody && w.reader != current && w.read == epoch)
      fail("write of what another thread reads", at);
    if (w.writer >= 0 && w.writer != current && w.written == epoch)
      fail("write of what another thread writes", at);
    w.writer = current;
    w.written = epoch;
  }
}

// Lands all but the newest `pending` groups of the thread's copies.
inline void land(size_t pending) {
  auto& groups = threads[current].groups;
  for (; groups.size() > pending; groups.pop_front())
    for (const Copy& copy : groups.front()) {
      note_write(copy.at, copy.bytes);
      if (copy.inside)
        std::memcpy(&block.shared[copy.at], copy.from, copy.bytes);
      else
        std::memset(&block.shared[copy.at], 0, copy.bytes);
    }
}

[[noreturn]] inline void run_thread() {
  for (;;) {
    body();
    Thread& self = threads[current];
    for (const Copy& copy : self.open)
      if (copy.inside) fail("a copy is never waited for", copy.at);
    for (const auto& group : self.groups)
      for (const Copy& copy : group) fail("a copy is never waited for", copy.at);
    self.done = true;
    jump(self.place, scheduler);
  }
}

// Lets the current thread run until it waits or ends.
__attribute__((noinline, no_sanitize("address"))) inline void resume() {
  Thread& thread = threads[current];
  if (__builtin_setjmp(scheduler.words) != 0) return;
  if (thread.started) jump(thread.place);
  thread.started = true;
  swapcontext(&unused, &thread.context);
}

// Makes fibers until there are so many. They stay where they are: each knows its own.
inline void make_threads(size_t count) {
  threads.reserve(kMostThreads);
  while (threads.size() < count) {
    ucontext_t& start = threads.emplace_back().context;
    getcontext(&start);
    start.uc_stack.ss_sp = threads.back().stack.get();
    start.uc_stack.ss_size = Thread::kStack;
    start.uc_link = nullptr;
    makecontext(&start, run_thread, 0);
  }
}

inline void run_block() {
  const int count = block.threads;
  std::fill(block.shared.begin(), block.shared.end(), 0xff);  // NaN in every floating-point type
  block.warps.assign((count + 31) / 32, {});
  block.arrived = 0;
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.done = false;
    thread.watched = nullptr;
    thread.epoch = next_epoch;
    thread.open.clear();
    thread.groups.clear();
  }
  ++next_epoch;
  for (int live = count; live > 0;) {
    bool progress = false;
    for (current = 0; current < count; ++current) {
      Thread& thread = threads[current];
      if (thread.done || (thread.watched != nullptr && *thread.watched == thread.seen)) continue;
      progress = true;
      threadIdx = {unsigned(current), 0, 0};
      thread.watched = nullptr;
      resume();
      live -= thread.done;
    }
    if (!progress) fail("threads wait for others that have ended");
  }
}

inline bool last_block_only =
    false;  // of each axis: the end of a tensor that takes more memory than there is

// All blocks of a grid; `shared` bytes of shared memory to a block.
inline void run_grid(dim3 grid, int count, size_t shared, std::function<void()> kernel) {
  if (count % 32 != 0 || count > kMostThreads) fail("threads of a block");
  if (grid.y > 65535 || grid.z > 65535 || shared > 163 << 10) fail("more than a GPU has");
  gridDim = grid;
  blockDim = dim3(count);
  body = std::move(kernel);
  make_threads(count);
  block.threads = count;
  block.shared.resize(shared);
  block.shared.shrink_to_fit();
  block.words.resize((shared + 3) / 4);
  const auto first = [](unsigned count) { return last_block_only ? count - 1 : 0; };
  for (blockIdx.z = first(grid.z); blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = first(grid.y); blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = first(grid.x); blockIdx.x < grid.x; ++blockIdx.x) run_block();
}

}  // namespace emulation
