// Work shared between the threads of XLA's CPU pool.

#ifndef KWS_JAX_LAYERS_PARALLEL_H_
#define KWS_JAX_LAYERS_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace kws {

using Index = int64_t;

struct Job {
  std::atomic<Index> next{0}, done{0};
  Index size;
  std::function<void(Index)> task;
  std::mutex mutex;
  std::condition_variable finished;

  void work() {
    for (Index i; (i = next.fetch_add(1)) < size;) {
      task(i);
      if (done.fetch_add(1) + 1 == size) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }
};

// Runs task(0) ... task(size - 1) on the pool and this thread. It can't deadlock on a full pool: this
// thread takes whatever nobody else has taken, and a helper that comes late finds nothing to do.
inline void parallel_for(xla::ffi::ThreadPool& pool, Index size, std::function<void(Index)> task) {
  auto job = std::make_shared<Job>();
  job->size = size;
  job->task = std::move(task);
  Index helpers = std::min(pool.num_threads(), size) - 1;
  for (Index i = 0; i < helpers; ++i) pool.Schedule([job] { job->work(); });
  job->work();
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done.load() == job->size; });
}

}  // namespace kws

#endif  // KWS_JAX_LAYERS_PARALLEL_H_
