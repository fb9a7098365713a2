// The scheduler of the emulator; see cuda_runtime.h.
#include "emulator.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <csetjmp>

#include <algorithm>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

namespace emulator {

constexpr size_t kStack = 64 << 10, kShared = 256 << 10, kGap = 64;

// A fiber. It starts in a context of its own; later changes of fiber are jumps, which make no system call. The address
// sanitizer knows the former only.
struct Fiber : Thread {
  ucontext_t context;
  jmp_buf at;
  bool started, done;
  const Barrier* waits;  // null: it does not
  unsigned generation;   // of `waits` when it came
  const char* what;
  bool ready() const { return !done && (waits == nullptr || waits->generation != generation); }
};

struct Block {
  uint3 index;
  int rank;
  Barrier barrier;
  unsigned char* shared;
  size_t shared_made = 0;  // bytes that arrays were made of, and are no longer NaN
  std::vector<Warp> warps;
};

Thread* self = nullptr;
dim3 block_size, grid_size;

namespace {

ucontext_t main_context;
jmp_buf main_at;
const std::function<void()>* body = nullptr;
Barrier cluster_barrier;
std::vector<Block> blocks;  // of the cluster that runs
std::vector<Fiber> fibers;
std::vector<Fiber*> order;
std::string error, kernel;
unsigned seed = 0;
int arch = 90;

Fiber* fiber() { return static_cast<Fiber*>(self); }

unsigned char* memory_of(std::vector<unsigned char*>& pool, size_t i, size_t bytes) {
  while (pool.size() <= i) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    pool.push_back(static_cast<unsigned char*>(memory));
  }
  return pool[i];
}

void to_main() {
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&fiber()->context, &main_context);
#else
  if (_setjmp(fiber()->at) == 0) _longjmp(main_at, 1);
#endif
}

void run_body() {
  (*body)();
  fiber()->done = true;
  to_main();
}

void run(Fiber& f) {
  self = &f;
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&main_context, &f.context);
#else
  if (_setjmp(main_at) == 0) {
    if (f.started) _longjmp(f.at, 1);
    f.started = true;
    setcontext(&f.context);
  }
#endif
}

void start(Fiber& f, unsigned char* stack) {
  f.started = f.done = false;
  f.waits = nullptr;
  f.shared_used = 0;
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, run_body, 0);
}

std::string text_of(const Place& p) {
  const std::string file = p.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(p.line());
}

// Runs the threads of one cluster to their end.
void run_cluster(int64_t first_block, int cluster, int threads) {
  static std::vector<unsigned char*> stacks, shared;
  blocks.resize(cluster);  // new ones have shared memory that others left
  fibers.resize(size_t(cluster) * threads);
  order.clear();
  cluster_barrier = {};
  for (int rank = 0; rank < cluster; ++rank) {
    Block& block = blocks[rank];
    block.index = {unsigned(first_block + rank), 0, 0};
    block.rank = rank;
    block.barrier = {};
    block.shared = memory_of(shared, rank, kShared);
    ASAN_UNPOISON_MEMORY_REGION(block.shared, kShared);
    std::memset(block.shared, 0xff, block.shared_made > 0 ? block.shared_made : kShared);
    block.shared_made = 0;
    ASAN_POISON_MEMORY_REGION(block.shared, kShared);
    block.warps.assign(threads / kWarp, {});
    for (int t = 0; t < threads; ++t) {
      Fiber& f = fibers[size_t(rank) * threads + t];
      f.index = {unsigned(t), 0, 0};
      f.lane = t % kWarp;
      f.warp = &block.warps[t / kWarp];
      f.block = &block;
      start(f, memory_of(stacks, order.size(), kStack));
      order.push_back(&f);
    }
  }
  std::mt19937 random(seed + unsigned(first_block));
  for (size_t left = fibers.size(); left > 0;) {
    if (seed != 0) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (Fiber* f : order) {
      if (!f->ready()) continue;
      f->waits = nullptr;
      run(*f);
      if (!error.empty()) return;
      moved = true;
      left -= f->done;
    }
    if (moved) continue;
    const Fiber& stuck = **std::find_if(order.begin(), order.end(), [](Fiber* f) { return !f->done; });
    error = "a " + std::string(stuck.what) + " barrier at " + text_of(stuck.waits->place) + " is reached by " +
            std::to_string(stuck.waits->arrived) + " threads only";
    return;
  }
}

}  // namespace

void fail(const std::string& why) {
  error = why;
  to_main();
  __builtin_unreachable();
}

void meet(Barrier& barrier, int expected, const char* what, const Place& place) {
  if (barrier.arrived == 0) {
    barrier.place = place;
  } else if (barrier.place.line() != place.line() || barrier.place.column() != place.column()) {
    fail("threads of a " + std::string(what) + " meet at " + text_of(barrier.place) + " and at " + text_of(place));
  }
  Fiber* const f = fiber();
  f->waits = &barrier;
  f->generation = barrier.generation;
  f->what = what;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    to_main();
  }
}

uint3 block_index() { return self->block->index; }
int cluster_size() { return int(blocks.size()); }
int cluster_rank() { return self->block->rank; }
void meet_block(const Place& place) { meet(self->block->barrier, int(fibers.size() / blocks.size()), "block", place); }
void meet_cluster(const Place& place) { meet(cluster_barrier, int(fibers.size()), "cluster", place); }

void* shared_array(size_t bytes, const Place& place) {
  Block& block = *self->block;
  unsigned char* const at = block.shared + self->shared_used;
  self->shared_used += (bytes + kGap - 1) / kGap * kGap + kGap;
  if (self->shared_used > kShared) fail("shared memory is used up at " + text_of(place));
  ASAN_UNPOISON_MEMORY_REGION(at, bytes);
  block.shared_made = std::max(block.shared_made, self->shared_used);
  return at;
}

void* shared_of_rank(void* address, int rank) {
  if (rank < 0 || rank >= cluster_size()) fail("the cluster has no block " + std::to_string(rank));
  return blocks[rank].shared + (static_cast<unsigned char*>(address) - self->block->shared);
}

void launch(const char* name, const semimatch::Geometry& g, const std::function<void()>& call) {
  kernel = name;
  error.clear();
  body = &call;
  block_size = dim3(g.threads);
  grid_size = dim3(unsigned(g.blocks));
  std::vector<int64_t> clusters(g.blocks / g.cluster);
  for (size_t i = 0; i < clusters.size(); ++i) clusters[i] = int64_t(i) * g.cluster;
  if (seed != 0) std::shuffle(clusters.begin(), clusters.end(), std::mt19937(seed));
  for (const int64_t first : clusters) {
    run_cluster(first, g.cluster, g.threads);
    if (!error.empty()) throw std::runtime_error("emulated kernel " + kernel + ": " + error);
  }
}

int capability() { return arch; }

}  // namespace emulator

// For `ctypes`: the order of threads and blocks, 0 for that of their numbers; the architecture that host code sees.
extern "C" void emulator_set_order(unsigned seed) { emulator::seed = seed; }
extern "C" void emulator_set_capability(int capability) { emulator::arch = capability; }
