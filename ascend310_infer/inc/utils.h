// Files, queues and statistics of the inference program; nothing here knows MindSpore Lite.
#ifndef DEPTHNET_INC_UTILS_H_
#define DEPTHNET_INC_UTILS_H_

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if __has_include(<filesystem>) && !defined(EXPERIMENTAL_FILESYSTEM)
#include <filesystem>
namespace depthnet {
namespace fs = std::filesystem;
}
#else  // GCC 7
#include <experimental/filesystem>
namespace depthnet {
namespace fs = std::experimental::filesystem;
}
#endif

namespace depthnet {

// What is wrong, where, and what was expected: printed as one line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The .bin files of `folder`, sorted by name. Throws Error when there is no such folder or none in it.
std::vector<fs::path> ListInputs(const fs::path& folder);

// Exactly `count` float32 values. Throws Error when the file cannot be read or has any other number of bytes.
std::vector<float> ReadFloats(const fs::path& path, size_t count);

// Writes through a temporary name, so that a file is complete or absent. Throws Error.
void WriteFile(const fs::path& path, const void* data, size_t bytes);

// Creates `folder` and proves that it can be written to. Throws Error.
void MakeWritable(const fs::path& folder);

bool AllFinite(const std::vector<float>& values);

struct Timing {
  size_t count = 0;  // of the images that are in the statistics
  double mean_ms = 0;
  double median_ms = 0;
  double p95_ms = 0;  // nearest rank
  double images_per_s = 0;
};

// Statistics of `milliseconds`, an entry an image; the first, which pays for what is done once, is left out when
// there are others.
Timing Summarize(std::vector<double> milliseconds);

// The text of test_perform_static.txt.
std::string Report(const Timing& timing);

// A queue of at most `capacity` items between two threads.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Waits for room; returns false when the queue has been closed.
  bool Push(T item) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || items_.size() < capacity_; });
    if (closed_) {
      return false;
    }
    items_.push_back(std::move(item));
    changed_.notify_all();
    return true;
  }

  // Waits for an item; empty when the queue has been closed and emptied.
  std::optional<T> Pop() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !items_.empty(); });
    if (items_.empty()) {
      return std::nullopt;
    }
    T item = std::move(items_.front());
    items_.pop_front();
    changed_.notify_all();
    return item;
  }

  void Close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

 private:
  const size_t capacity_;
  std::deque<T> items_;
  bool closed_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace depthnet

#endif  // DEPTHNET_INC_UTILS_H_
