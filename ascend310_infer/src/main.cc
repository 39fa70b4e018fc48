// Predicts log depth for a folder of preprocessed images: CoarseNet, then FineNet on top of it.

#include <gflags/gflags.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "inc/utils.h"

#if __has_include("include/api/model.h")
#include "include/api/context.h"
#include "include/api/model.h"
#include "include/api/status.h"
#include "include/api/types.h"
#else
#include "include/cxx_api/context.h"
#include "include/cxx_api/model.h"
#include "include/cxx_api/status.h"
#include "include/cxx_api/types.h"
#endif

DEFINE_string(coarse_mindir, "", "CoarseNet's MindIR (required)");
DEFINE_string(fine_mindir, "", "FineNet's MindIR (required)");
DEFINE_string(dataset_path, "", "folder of <id>.bin, float32 1x3x228x304 RGB in [0, 1] (required)");
DEFINE_string(result_path, "result_Files", "folder for <id>_0.bin, float32 1x1x55x74 log depth");
DEFINE_string(time_path, "time_Result", "folder for test_perform_static.txt");
DEFINE_string(device_type, "Ascend", "Ascend or CPU");
DEFINE_int32(device_id, 0, "which Ascend");
DEFINE_string(precision, "fp32", "fp32 or fp16");
DEFINE_int32(threads, 2, "threads of the CPU backend");

namespace {

namespace fs = std::filesystem;
using depthnet::Error;

constexpr int kSomeFilesFailed = 1;
constexpr int kUserMistake = 2;
constexpr size_t kQueueCapacity = 4;
const std::vector<int64_t> kRgbShape = {1, 3, 228, 304};
const std::vector<int64_t> kDepthShape = {1, 1, 55, 74};

struct Port {
  std::string name;
  std::vector<int64_t> shape;
};

size_t Count(const std::vector<int64_t> &shape) {
  size_t count = 1;
  for (const auto size : shape) {
    count *= static_cast<size_t>(size);
  }
  return count;
}

std::string Text(const std::vector<int64_t> &shape) {
  std::string text;
  for (const auto size : shape) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

void Check(const mindspore::Status &status, const std::string &what) {
  if (!status.IsOk()) {
    throw Error(what + ": MindSpore Lite says: " + status.ToString());
  }
}

std::shared_ptr<mindspore::Context> MakeContext() {
  auto context = std::make_shared<mindspore::Context>();
  const bool fp16 = FLAGS_precision == "fp16";
  if (FLAGS_device_type == "Ascend") {
    auto device = std::make_shared<mindspore::AscendDeviceInfo>();
    device->SetDeviceID(static_cast<uint32_t>(FLAGS_device_id));
    device->SetPrecisionMode(fp16 ? "enforce_fp16" : "enforce_fp32");  // left alone it would be enforce_fp16
    context->MutableDeviceInfo().push_back(device);
  } else {
    context->SetThreadNum(FLAGS_threads);
    auto device = std::make_shared<mindspore::CPUDeviceInfo>();
    device->SetEnableFP16(fp16);
    context->MutableDeviceInfo().push_back(device);
  }
  return context;
}

// One loaded model whose inputs and output are known to be the expected ones.
class Network {
 public:
  Network(const fs::path &path, std::vector<Port> inputs) : path_(path), ports_(std::move(inputs)) {
    std::error_code error;
    if (!fs::is_regular_file(path, error)) {
      throw Error(path.string() + ": no such file; expected a MindIR of export.py");
    }
    Check(model_.Build(path.string(), mindspore::kMindIR, MakeContext()), path.string() + ": cannot be loaded");
    inputs_ = model_.GetInputs();
    CheckInputs();
    CheckOutputs(model_.GetOutputs());
  }

  // Values in the order of the ports -> the output's values.
  std::vector<float> Run(const std::vector<const std::vector<float> *> &values) {
    for (size_t i = 0; i < ports_.size(); ++i) {
      auto &tensor = inputs_[order_[i]];
      auto *data = static_cast<float *>(tensor.MutableData());
      if (data == nullptr || tensor.DataSize() != values[i]->size() * sizeof(float)) {
        throw Error(path_.string() + ": input " + ports_[i].name + " has no room for its values");
      }
      std::copy(values[i]->begin(), values[i]->end(), data);
    }
    std::vector<mindspore::MSTensor> outputs;
    Check(model_.Predict(inputs_, &outputs), path_.string() + ": cannot run");
    CheckOutputs(outputs);
    const auto data = outputs[0].Data();
    if (data == nullptr) {
      throw Error(path_.string() + ": the output has no data");
    }
    const auto *first = static_cast<const float *>(data.get());
    return std::vector<float>(first, first + Count(kDepthShape));
  }

 private:
  // MindIR names an input <graph>:<argument>; Lite may keep either.
  static bool IsNamed(const std::string &full, const std::string &name) {
    return full == name || (full.size() > name.size() && full.compare(full.size() - name.size(), name.size(), name) == 0 &&
                            full[full.size() - name.size() - 1] == ':');
  }

  [[noreturn]] void Refuse(const std::string &found, const std::string &expected) const {
    throw Error(path_.string() + ": " + found + ", expected " + expected + ": is it another net's MindIR?");
  }

  void CheckInputs() {
    if (inputs_.size() != ports_.size()) {
      Refuse(std::to_string(inputs_.size()) + " inputs", std::to_string(ports_.size()));
    }
    for (const auto &port : ports_) {
      const auto found = std::find_if(inputs_.begin(), inputs_.end(),
                                      [&port](const auto &tensor) { return IsNamed(tensor.Name(), port.name); });
      if (found == inputs_.end()) {
        Refuse("no input named " + port.name + " (the first is " + inputs_[0].Name() + ")", port.name);
      }
      CheckTensor(*found, "input " + port.name, port.shape);
      order_.push_back(static_cast<size_t>(found - inputs_.begin()));
    }
  }

  void CheckOutputs(const std::vector<mindspore::MSTensor> &outputs) const {
    if (outputs.size() != 1) {
      Refuse(std::to_string(outputs.size()) + " outputs", "1");
    }
    CheckTensor(outputs[0], "output", kDepthShape);
  }

  void CheckTensor(const mindspore::MSTensor &tensor, const std::string &what, const std::vector<int64_t> &shape) const {
    if (tensor.DataType() != mindspore::DataType::kNumberTypeFloat32) {
      Refuse(what + " is of type " + std::to_string(static_cast<int>(tensor.DataType())), "float32");
    }
    if (tensor.Shape() != shape) {
      Refuse(what + " is " + Text(tensor.Shape()), Text(shape));
    }
  }

  fs::path path_;
  std::vector<Port> ports_;
  mindspore::Model model_;
  std::vector<mindspore::MSTensor> inputs_;
  std::vector<size_t> order_;  // where port i is in inputs_
};

struct Image {
  fs::path path;
  std::vector<float> rgb;
  std::string problem;  // why it could not be read; empty when it could
};

struct Prediction {
  fs::path path;
  std::vector<float> log_depth;
};

void ReadAll(const std::vector<fs::path> &files, depthnet::BoundedQueue<Image> *images) {
  for (const auto &file : files) {
    Image image{file, {}, {}};
    try {
      image.rgb = depthnet::ReadFloats(file, Count(kRgbShape));
    } catch (const std::exception &error) {
      image.problem = error.what();
    }
    if (!images->Push(std::move(image))) {
      return;
    }
  }
  images->Close();
}

void WriteAll(depthnet::BoundedQueue<Prediction> *predictions, std::vector<std::string> *problems) {
  while (auto prediction = predictions->Pop()) {
    try {
      depthnet::WriteFile(prediction->path, prediction->log_depth.data(), prediction->log_depth.size() * sizeof(float));
    } catch (const std::exception &error) {
      problems->push_back(error.what());
    }
  }
}

// Both nets on one image. Throws Error when the result is not finite.
std::vector<float> Infer(Network *coarse, Network *fine, const Image &image) {
  const auto coarse_log_depth = coarse->Run({&image.rgb});
  auto log_depth = fine->Run({&image.rgb, &coarse_log_depth});
  if (!depthnet::AllFinite(log_depth)) {
    throw Error(image.path.string() + ": the prediction is not finite");
  }
  return log_depth;
}

// Runs over all files while the next one is read and the last one is written; returns what went wrong.
std::vector<std::string> RunAll(const std::vector<fs::path> &files, Network *coarse, Network *fine,
                                std::vector<double> *milliseconds) {
  depthnet::BoundedQueue<Image> images(kQueueCapacity);
  depthnet::BoundedQueue<Prediction> predictions(kQueueCapacity);
  std::vector<std::string> problems;
  std::vector<std::string> write_problems;
  std::thread reader(ReadAll, std::cref(files), &images);
  std::thread writer(WriteAll, &predictions, &write_problems);
  while (auto image = images.Pop()) {
    if (!image->problem.empty()) {
      problems.push_back(image->problem);
      continue;
    }
    try {
      const auto begin = std::chrono::steady_clock::now();
      auto log_depth = Infer(coarse, fine, *image);
      const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
      milliseconds->push_back(elapsed.count());
      predictions.Push({fs::path(FLAGS_result_path) / (image->path.stem().string() + "_0.bin"), std::move(log_depth)});
    } catch (const std::exception &error) {
      problems.push_back(error.what());
    }
  }
  predictions.Close();
  reader.join();
  writer.join();
  problems.insert(problems.end(), write_problems.begin(), write_problems.end());
  return problems;
}

void CheckFlags() {
  if (FLAGS_coarse_mindir.empty() || FLAGS_fine_mindir.empty() || FLAGS_dataset_path.empty()) {
    throw Error("--coarse_mindir, --fine_mindir and --dataset_path are required; --help lists all");
  }
  if (FLAGS_device_type != "Ascend" && FLAGS_device_type != "CPU") {
    throw Error("--device_type " + FLAGS_device_type + ": expected Ascend or CPU");
  }
  if (FLAGS_precision != "fp32" && FLAGS_precision != "fp16") {
    throw Error("--precision " + FLAGS_precision + ": expected fp32 or fp16");
  }
  if (FLAGS_device_id < 0 || FLAGS_threads < 1) {
    throw Error("--device_id counts from 0 and --threads from 1");
  }
}

int Run() {
  CheckFlags();
  const auto files = depthnet::ListInputs(FLAGS_dataset_path);
  depthnet::MakeWritable(FLAGS_result_path);
  depthnet::MakeWritable(FLAGS_time_path);
  Network coarse(FLAGS_coarse_mindir, {{"rgb", kRgbShape}});
  Network fine(FLAGS_fine_mindir, {{"rgb", kRgbShape}, {"coarse_log_depth", kDepthShape}});

  std::vector<double> milliseconds;
  const auto problems = RunAll(files, &coarse, &fine, &milliseconds);
  for (const auto &problem : problems) {
    std::cerr << "error: " << problem << std::endl;
  }
  const auto report = depthnet::Report(depthnet::Summarize(milliseconds));
  depthnet::WriteFile(fs::path(FLAGS_time_path) / "test_perform_static.txt", report.data(), report.size());
  std::cout << milliseconds.size() << " of " << files.size() << " images, " << FLAGS_device_type << " "
            << FLAGS_precision << "\n"
            << report << std::flush;
  return problems.empty() ? 0 : kSomeFilesFailed;
}

}  // namespace

int main(int argc, char **argv) {
  gflags::SetUsageMessage("predict log depth with CoarseNet and FineNet on Ascend 310 or CPU");
  gflags::ParseCommandLineFlags(&argc, &argv, true);
  try {
    return Run();
  } catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << std::endl;
    return kUserMistake;
  }
}
