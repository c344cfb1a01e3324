// Threads. A process that multiplies with OpenMP has threads of it already, which wait by spinning: others beside them
// would have to fight for the cores. So the work is given to those very threads, through the one function that all of
// GNU's, LLVM's and Intel's runtimes have for what a compiler makes of `#pragma omp parallel`. Without it there are
// threads of our own, which sleep when there is nothing to do.
//
// A child of fork has none of its parent's threads, and OpenMP's would wait for them forever: it works alone.
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "path.h"

namespace ecoflap {
namespace {

using Parallel = void (*)(void (*work)(void *), void *context, unsigned threads, unsigned flags);

std::atomic<Parallel> openmp{nullptr};
std::atomic<bool> forked{false};

// Tasks are taken one by one, so that a thread whose core is busy elsewhere keeps no other one waiting.
struct Work {
  int64_t count;
  void (*work)(void *, int64_t);
  void *context;
  std::atomic<int64_t> next{0};

  void take_part() {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(context, task);
  }
};

void take_part(void *work) { static_cast<Work *>(work)->take_part(); }

class OwnThreads {
 public:
  void run(int threads, Work &work) {
    std::lock_guard<std::mutex> one_caller(caller_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start(threads - 1);
      work_ = &work;
      wanted_ = started_ < threads - 1 ? started_ : threads - 1;
      running_ = wanted_;
      ++round_;
    }
    begin_.notify_all();
    work.take_part();
    std::unique_lock<std::mutex> lock(mutex_);
    end_.wait(lock, [this] { return running_ == 0; });
    work_ = nullptr;
  }

 private:
  // Where the system gives no more threads, those that there are do the work.
  void start(int wanted) try {
    for (; started_ < wanted; ++started_) std::thread([this, n = started_] { wait_for_work(n); }).detach();
  } catch (const std::system_error &) {
  } catch (const std::bad_alloc &) {
  }

  void wait_for_work(int number) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      begin_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (number >= wanted_ || work_ == nullptr) continue;
      Work *work = work_;
      lock.unlock();
      work->take_part();
      lock.lock();
      if (--running_ == 0) end_.notify_one();
    }
  }

  std::mutex caller_, mutex_;
  std::condition_variable begin_, end_;
  Work *work_ = nullptr;
  int started_ = 0, wanted_ = 0, running_ = 0;
  uint64_t round_ = 0;
};

OwnThreads &own_threads() {
  static OwnThreads *threads = [] {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    return new OwnThreads;  // never taken down: its threads may outlive everything else
  }();
  return *threads;
}

}  // namespace

void run_on(void *gomp_parallel) {
  own_threads();  // notices forks from now on
  openmp = reinterpret_cast<Parallel>(gomp_parallel);
}

void in_parallel(int threads, int64_t count, void (*work)(void *, int64_t), void *context) {
  Work all{count, work, context};
  if (threads > count) threads = int(count);
  OwnThreads &own = own_threads();
  if (threads <= 1 || forked)
    all.take_part();
  else if (Parallel parallel = openmp)
    parallel(take_part, &all, unsigned(threads), 0);
  else
    own.run(threads, all);
}

}  // namespace ecoflap
