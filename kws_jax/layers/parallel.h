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

// Every worker has a range of tasks of its own, the same in each job of one size, and helps the others when
// it has done them: what a worker wrote in one job it most likely reads in the next, from its own cache.
struct Job {
  Index size, workers;
  std::unique_ptr<std::atomic<Index>[]> next;  // of each worker's range
  std::atomic<Index> done{0};
  std::function<void(Index)> task;
  std::mutex mutex;
  std::condition_variable finished;

  Job(Index size, Index workers, std::function<void(Index)> task)
      : size(size), workers(workers), next(new std::atomic<Index>[workers]), task(std::move(task)) {
    for (Index w = 0; w < workers; ++w) next[w] = begin(w);
  }
  Index begin(Index worker) const { return size * worker / workers; }

  void work(Index worker) {
    for (Index other = 0; other < workers; ++other) {
      const Index owner = (worker + other) % workers, end = begin(owner + 1);
      for (Index i; (i = next[owner].fetch_add(1)) < end;) {
        task(i);
        if (done.fetch_add(1) + 1 == size) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_all();
        }
      }
    }
  }
};

// Runs task(0) ... task(size - 1) on the pool and this thread. It can't deadlock on a full pool: this
// thread takes whatever nobody else has taken, and a helper that comes late finds nothing to do.
inline void parallel_for(xla::ffi::ThreadPool& pool, Index size, std::function<void(Index)> task) {
  const Index workers = std::min<Index>(std::max<Index>(1, pool.num_threads()), size);
  if (size == 0) return;
  auto job = std::make_shared<Job>(size, workers, std::move(task));
  for (Index w = 1; w < workers; ++w) pool.Schedule([job, w] { job->work(w); });
  job->work(0);
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done.load() == job->size; });
}

}  // namespace kws

#endif  // KWS_JAX_LAYERS_PARALLEL_H_
