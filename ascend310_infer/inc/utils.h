// Files, queues and statistics of the inference program. Does not need MindSpore Lite.
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

// An error that is printed as one line: what is wrong, where, and what was expected.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Returns the .bin files of `folder`, sorted by name. Throws Error if the folder or a .bin file in it is missing.
std::vector<fs::path> ListInputs(const fs::path& folder);

// Reads a file of `count` float32 values. Throws Error if it cannot be read or has another size.
std::vector<float> ReadFloats(const fs::path& path, size_t count);

// Writes a file under a temporary name and renames it, so that `path` is never incomplete. Throws Error.
void WriteFile(const fs::path& path, const void* data, size_t bytes);

// Creates `folder` if necessary and checks that files can be written there. Throws Error.
void MakeWritable(const fs::path& folder);

bool AllFinite(const std::vector<float>& values);

struct Timing {
  size_t count = 0;  // number of images in the statistics
  double mean_ms = 0;
  double median_ms = 0;
  double p95_ms = 0;  // nearest rank
  double images_per_s = 0;
};

// Computes the statistics of the times of images. Leaves out the first image if there are others, because its time
// includes work that is done once.
Timing Summarize(std::vector<double> milliseconds);

// Returns the text of test_perform_static.txt.
std::string Report(const Timing& timing);

// A queue of at most `capacity` items between two threads.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Waits until the queue has fewer than `capacity` items and appends one. Returns false if the queue was closed.
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

  // Waits for an item and removes it. Returns nothing if the queue was closed and is empty.
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

  // Makes Push return false, and Pop return nothing when no item is left.
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
