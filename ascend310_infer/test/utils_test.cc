#include "inc/utils.h"

#include <unistd.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <thread>

#include "test/check.h"

namespace fs = depthnet::fs;

namespace depthnet {
namespace {

// A new folder whose name contains special characters; it is removed at the end of the test.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("depthnet " + std::to_string(::getpid()) + " ä")) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  fs::path operator/(const char* name) const { return path_ / name; }
  operator fs::path() const { return path_; }  // NOLINT(google-explicit-constructor)

  void Put(const std::string& name, size_t bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << std::string(bytes, 'x');
  }

 private:
  fs::path path_;
};

bool Near(double found, double expected) { return std::abs(found - expected) < 1e-9 * std::abs(expected); }

std::string WhatOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(InputsAreTheBinFilesInOrder) {
  const Folder folder;
  for (const auto* name : {"00010.bin", "00002.bin", "a b.bin", "notes.txt"}) {
    folder.Put(name, 4);
  }
  fs::create_directory(folder / "folder.bin");
  const auto files = ListInputs(folder);
  CHECK_EQ(files.size(), 3U);
  CHECK_EQ(files[0].filename(), "00002.bin");
  CHECK_EQ(files[1].filename(), "00010.bin");
  CHECK_EQ(files[2].filename(), "a b.bin");
}

TEST(AnEmptyOrAbsentFolderIsNamed) {
  const Folder folder;
  CHECK(WhatOf([&] { ListInputs(folder); }).find("no .bin file") != std::string::npos);
  CHECK(WhatOf([&] { ListInputs(folder / "absent"); }).find("absent: No such file") != std::string::npos);
}

TEST(ExactlyTheRightNumberOfBytesIsRead) {
  const Folder folder;
  const std::vector<float> values = {1.5F, -2.0F, 0.25F};
  WriteFile(folder / "three.bin", values.data(), 12);
  CHECK_EQ(ReadFloats(folder / "three.bin", 3), values);
  for (const size_t bytes : {0U, 1U, 11U, 13U, 24U}) {
    folder.Put("other.bin", bytes);
    CHECK(WhatOf([&] { ReadFloats(folder / "other.bin", 3); }).find(std::to_string(bytes) + " bytes, expected 12") !=
          std::string::npos);
  }
  CHECK(WhatOf([&] { ReadFloats(folder / "absent.bin", 3); }).find("absent.bin") != std::string::npos);
}

TEST(NothingTemporaryIsLeftAndAnEarlierFileIsReplaced) {
  const Folder folder;
  WriteFile(folder / "result.bin", "old one", 7);
  WriteFile(folder / "result.bin", "new", 3);
  CHECK_EQ(fs::file_size(folder / "result.bin"), 3U);
  CHECK_EQ(std::distance(fs::directory_iterator(folder), fs::directory_iterator()), 1);
}

TEST(AFolderThatCannotBeMadeIsNamed) {
  const Folder folder;
  folder.Put("file", 1);
  CHECK(WhatOf([&] { MakeWritable(folder / "file" / "below"); }).find("below: cannot be made") != std::string::npos);
  CHECK(WhatOf([&] { WriteFile(folder / "absent" / "x.bin", "", 0); }).find("cannot be written") != std::string::npos);
  MakeWritable(folder / "a" / "b");
  CHECK(fs::is_empty(folder / "a" / "b"));
}

TEST(AllFiniteFindsWhatIsNot) {
  CHECK(AllFinite({0.0F, -3.5F, std::numeric_limits<float>::max()}));
  CHECK(!AllFinite({0.0F, std::nanf("")}));
  CHECK(!AllFinite({-std::numeric_limits<float>::infinity()}));
}

TEST(SummarizeLeavesTheFirstRunOut) {
  std::vector<double> times = {1000};
  for (int i = 100; i >= 1; --i) {
    times.push_back(i);
  }
  const auto timing = Summarize(times);
  CHECK_EQ(timing.count, 100U);
  CHECK(Near(timing.mean_ms, 50.5));
  CHECK(Near(timing.median_ms, 50.5));
  CHECK(Near(timing.p95_ms, 95));
  CHECK(Near(timing.images_per_s, 1000 / 50.5));
}

TEST(SummarizeOneRunIsAllThereIs) {
  CHECK(Near(Summarize({7}).mean_ms, 7));
  CHECK_EQ(Summarize({7}).count, 1U);
  CHECK_EQ(Summarize({}).count, 0U);
}

TEST(ReportHasTheLineThatScriptsLookFor) {
  CHECK_EQ(Report(Summarize({9, 4, 4})),
           "NN inference cost average time: 4 ms of infer_count 2\n"
           "median: 4 ms, 95th percentile: 4 ms, images/s: 250\n");
}

TEST(BoundedQueueHandsEverythingOnInOrderAndNeverHoldsMoreThanItsCapacity) {
  BoundedQueue<int> queue(3);
  std::thread producer([&queue] {
    for (int i = 0; i < 1000; ++i) {
      queue.Push(i);
    }
    queue.Close();
  });
  int expected = 0;
  while (auto item = queue.Pop()) {
    CHECK_EQ(*item, expected++);
  }
  producer.join();
  CHECK_EQ(expected, 1000);
}

TEST(BoundedQueueClosingFreesAWaitingProducer) {
  BoundedQueue<int> queue(1);
  CHECK(queue.Push(1));
  bool accepted = true;
  std::thread producer([&] { accepted = queue.Push(2); });
  queue.Close();
  producer.join();
  CHECK(!accepted);
  CHECK_EQ(queue.Pop(), 1);
  CHECK_EQ(queue.Pop(), std::nullopt);
}

}  // namespace
}  // namespace depthnet
