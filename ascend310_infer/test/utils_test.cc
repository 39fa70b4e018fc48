#include "inc/utils.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <numeric>
#include <thread>

namespace fs = std::filesystem;

namespace depthnet {
namespace {

class FilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              ("depthnet " + std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + " ä");
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Put(const std::string &name, size_t bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << std::string(bytes, 'x');
  }

  fs::path folder_;
};

std::string WhatOf(const std::function<void()> &call) {
  try {
    call();
  } catch (const Error &error) {
    return error.what();
  }
  return "";
}

TEST_F(FilesTest, InputsAreTheBinFilesInOrder) {
  for (const auto *name : {"00010.bin", "00002.bin", "a b.bin", "notes.txt"}) {
    Put(name, 4);
  }
  fs::create_directory(folder_ / "folder.bin");
  const auto files = ListInputs(folder_);
  ASSERT_EQ(files.size(), 3U);
  EXPECT_EQ(files[0].filename(), "00002.bin");
  EXPECT_EQ(files[1].filename(), "00010.bin");
  EXPECT_EQ(files[2].filename(), "a b.bin");
}

TEST_F(FilesTest, AnEmptyOrAbsentFolderIsNamed) {
  EXPECT_NE(WhatOf([&] { ListInputs(folder_); }).find("no .bin file"), std::string::npos);
  EXPECT_NE(WhatOf([&] { ListInputs(folder_ / "absent"); }).find("absent: No such file"), std::string::npos);
}

TEST_F(FilesTest, ExactlyTheRightNumberOfBytesIsRead) {
  const std::vector<float> values = {1.5F, -2.0F, 0.25F};
  WriteFile(folder_ / "three.bin", values.data(), 12);
  EXPECT_EQ(ReadFloats(folder_ / "three.bin", 3), values);
  for (const size_t bytes : {0U, 1U, 11U, 13U, 24U}) {
    Put("other.bin", bytes);
    EXPECT_NE(WhatOf([&] { ReadFloats(folder_ / "other.bin", 3); }).find(std::to_string(bytes) + " bytes, expected 12"),
              std::string::npos);
  }
  EXPECT_NE(WhatOf([&] { ReadFloats(folder_ / "absent.bin", 3); }).find("absent.bin"), std::string::npos);
}

TEST_F(FilesTest, NothingTemporaryIsLeftAndAnEarlierFileIsReplaced) {
  WriteFile(folder_ / "result.bin", "old one", 7);
  WriteFile(folder_ / "result.bin", "new", 3);
  EXPECT_EQ(fs::file_size(folder_ / "result.bin"), 3U);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(FilesTest, AFolderThatCannotBeMadeIsNamed) {
  Put("file", 1);
  EXPECT_NE(WhatOf([&] { MakeWritable(folder_ / "file" / "below"); }).find("below: cannot be made"), std::string::npos);
  EXPECT_NE(WhatOf([&] { WriteFile(folder_ / "absent" / "x.bin", "", 0); }).find("cannot be written"),
            std::string::npos);
  MakeWritable(folder_ / "a" / "b");
  EXPECT_TRUE(fs::is_empty(folder_ / "a" / "b"));
}

TEST(AllFinite, FindsWhatIsNot) {
  EXPECT_TRUE(AllFinite({0.0F, -3.5F, std::numeric_limits<float>::max()}));
  EXPECT_FALSE(AllFinite({0.0F, std::nanf("")}));
  EXPECT_FALSE(AllFinite({-std::numeric_limits<float>::infinity()}));
}

TEST(Summarize, LeavesTheFirstRunOut) {
  std::vector<double> times = {1000};
  for (int i = 100; i >= 1; --i) {
    times.push_back(i);
  }
  const auto timing = Summarize(times);
  EXPECT_EQ(timing.count, 100U);
  EXPECT_DOUBLE_EQ(timing.mean_ms, 50.5);
  EXPECT_DOUBLE_EQ(timing.median_ms, 50.5);
  EXPECT_DOUBLE_EQ(timing.p95_ms, 95);
  EXPECT_DOUBLE_EQ(timing.images_per_s, 1000 / 50.5);
}

TEST(Summarize, OneRunIsAllThereIs) {
  EXPECT_DOUBLE_EQ(Summarize({7}).mean_ms, 7);
  EXPECT_EQ(Summarize({7}).count, 1U);
  EXPECT_EQ(Summarize({}).count, 0U);
}

TEST(Report, HasTheLineThatScriptsLookFor) {
  EXPECT_EQ(Report(Summarize({9, 4, 4})),
            "NN inference cost average time: 4 ms of infer_count 2\n"
            "median: 4 ms, 95th percentile: 4 ms, images/s: 250\n");
}

TEST(BoundedQueue, HandsEverythingOnInOrderAndNeverHoldsMoreThanItsCapacity) {
  BoundedQueue<int> queue(3);
  std::thread producer([&queue] {
    for (int i = 0; i < 1000; ++i) {
      queue.Push(i);
    }
    queue.Close();
  });
  int expected = 0;
  while (auto item = queue.Pop()) {
    EXPECT_EQ(*item, expected++);
  }
  producer.join();
  EXPECT_EQ(expected, 1000);
}

TEST(BoundedQueue, ClosingFreesAWaitingProducer) {
  BoundedQueue<int> queue(1);
  ASSERT_TRUE(queue.Push(1));
  bool accepted = true;
  std::thread producer([&] { accepted = queue.Push(2); });
  queue.Close();
  producer.join();
  EXPECT_FALSE(accepted);
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_EQ(queue.Pop(), std::nullopt);
}

}  // namespace
}  // namespace depthnet
