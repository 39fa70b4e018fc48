#include "inc/utils.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>
#include <system_error>

namespace depthnet {

std::vector<fs::path> ListInputs(const fs::path& folder) {
  std::error_code error;
  fs::directory_iterator entries(folder, error);
  if (error) {
    throw Error(folder.string() + ": " + error.message() + "; expected the folder of preprocessed .bin files");
  }
  std::vector<fs::path> files;
  for (const auto& entry : entries) {
    const auto name = entry.path().filename().string();
    if (name[0] != '.' && entry.path().extension() == ".bin" && fs::is_regular_file(entry.path(), error)) {
      files.push_back(entry.path());
    }
  }
  if (files.empty()) {
    throw Error(folder.string() + ": no .bin file in it; expected the img_data folder that preprocess.py writes");
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<float> ReadFloats(const fs::path& path, size_t count) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  if (error) {
    throw Error(path.string() + ": " + error.message());
  }
  const auto expected = count * sizeof(float);
  if (bytes != expected) {
    throw Error(path.string() + ": " + std::to_string(bytes) + " bytes, expected " + std::to_string(expected));
  }
  std::vector<float> values(count);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(expected))) {
    throw Error(path.string() + ": cannot be read");
  }
  return values;
}

void WriteFile(const fs::path& path, const void* data, size_t bytes) {
  fs::path partial = path;
  partial += ".partial";
  {
    std::ofstream file(partial, std::ios::binary | std::ios::trunc);
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    file.close();
    if (!file) {
      std::error_code ignored;
      fs::remove(partial, ignored);
      throw Error(path.string() + ": cannot be written");
    }
  }
  std::error_code error;
  fs::rename(partial, path, error);
  if (error) {
    throw Error(path.string() + ": " + error.message());
  }
}

void MakeWritable(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    throw Error(folder.string() + ": cannot be made: " + error.message());
  }
  std::string probe = (folder / ".partial-XXXXXX").string();  // mkstemp chooses a name that does not exist
  const int descriptor = mkstemp(probe.data());
  if (descriptor < 0) {
    throw Error(folder.string() + ": cannot write there: " + std::strerror(errno));
  }
  close(descriptor);
  fs::remove(probe, error);
}

bool AllFinite(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

Timing Summarize(std::vector<double> milliseconds) {
  if (milliseconds.size() > 1) {
    milliseconds.erase(milliseconds.begin());
  }
  Timing timing;
  timing.count = milliseconds.size();
  if (milliseconds.empty()) {
    return timing;
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  const size_t n = milliseconds.size();
  timing.mean_ms = std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / static_cast<double>(n);
  timing.median_ms = (milliseconds[(n - 1) / 2] + milliseconds[n / 2]) / 2;
  const auto rank = static_cast<size_t>(std::ceil(0.95 * static_cast<double>(n)));
  timing.p95_ms = milliseconds[rank - 1];
  timing.images_per_s = timing.mean_ms > 0 ? 1000 / timing.mean_ms : 0;
  return timing;
}

std::string Report(const Timing& timing) {
  std::ostringstream text;
  text << "NN inference cost average time: " << timing.mean_ms << " ms of infer_count " << timing.count << "\n"
       << "median: " << timing.median_ms << " ms, 95th percentile: " << timing.p95_ms
       << " ms, images/s: " << timing.images_per_s << "\n";
  return text.str();
}

}  // namespace depthnet
