// Predicts the log depth of a folder of preprocessed images with CoarseNet and FineNet.

#include <getopt.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
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

constexpr char kUsage[] =
    R"(usage: depthnet_infer --coarse_mindir FILE --fine_mindir FILE --dataset_path FOLDER [options]

Predicts log depth with CoarseNet and FineNet on Ascend 310 or CPU.

  --coarse_mindir FILE    CoarseNet's MindIR
  --fine_mindir FILE      FineNet's MindIR
  --dataset_path FOLDER   of <id>.bin, float32 1x3x228x304 RGB in [0, 1]
  --result_path FOLDER    for <id>_0.bin, float32 1x1x55x74 log depth (default: result_Files)
  --time_path FOLDER      for test_perform_static.txt (default: time_Result)
  --device_type NAME      Ascend or CPU (default: Ascend)
  --device_id N           which Ascend (default: 0)
  --precision NAME        fp32 or fp16 (default: fp32; on Ascend 310 convolutions are fp16 all the same)
  --threads N             of the CPU backend (default: 2)
)";

namespace {

namespace fs = depthnet::fs;
using depthnet::Error;

constexpr int kSomeFilesFailed = 1;
constexpr int kUserMistake = 2;
constexpr size_t kQueueCapacity = 4;
const std::vector<int64_t> kRgbShape = {1, 3, 228, 304};
const std::vector<int64_t> kDepthShape = {1, 1, 55, 74};

struct Options {
  std::string coarse_mindir;
  std::string fine_mindir;
  std::string dataset_path;
  std::string result_path = "result_Files";
  std::string time_path = "time_Result";
  std::string device_type = "Ascend";
  int device_id = 0;
  std::string precision = "fp32";
  int threads = 2;
};

// The expected name and shape of a model's input.
struct Port {
  std::string name;
  std::vector<int64_t> shape;
};

// Number of elements of a tensor.
size_t Count(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (const auto size : shape) {
    count *= static_cast<size_t>(size);
  }
  return count;
}

// A shape as text, such as 1x3x228x304.
std::string Text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const auto size : shape) {
    text += (text.empty() ? "" : "x") + std::to_string(size);
  }
  return text;
}

// Throws Error, beginning with `what`, unless the status is OK.
void Check(const mindspore::Status& status, const std::string& what) {
  if (!status.IsOk()) {
    throw Error(what + ": MindSpore Lite says: " + status.ToString());
  }
}

std::shared_ptr<mindspore::Context> MakeContext(const Options& options) {
  auto context = std::make_shared<mindspore::Context>();
  const bool fp16 = options.precision == "fp16";
  if (options.device_type == "Ascend") {
    auto device = std::make_shared<mindspore::AscendDeviceInfo>();
    device->SetDeviceID(static_cast<uint32_t>(options.device_id));
    device->SetPrecisionMode(fp16 ? "enforce_fp16" : "enforce_fp32");  // MindSpore Lite's default is enforce_fp16
    context->MutableDeviceInfo().push_back(device);
  } else {
    context->SetThreadNum(options.threads);
    auto device = std::make_shared<mindspore::CPUDeviceInfo>();
    device->SetEnableFP16(fp16);
    context->MutableDeviceInfo().push_back(device);
  }
  return context;
}

// A loaded model. The constructor throws Error unless its inputs and output have the expected names, types and shapes.
class Network {
 public:
  Network(const fs::path& path, std::vector<Port> inputs, const Options& options)
      : path_(path), ports_(std::move(inputs)) {
    std::error_code error;
    if (!fs::is_regular_file(path, error)) {
      throw Error(path.string() + ": no such file; expected a MindIR of export.py");
    }
    Check(model_.Build(path.string(), mindspore::kMindIR, MakeContext(options)), path.string() + ": cannot be loaded");
    inputs_ = model_.GetInputs();
    CheckInputs();
    CheckOutputs(model_.GetOutputs());
  }

  // Takes the values of each input, in the order of the ports. Returns the values of the output. Throws Error.
  std::vector<float> Run(const std::vector<const std::vector<float>*>& values) {
    for (size_t i = 0; i < ports_.size(); ++i) {
      auto& tensor = inputs_[order_[i]];
      auto* data = static_cast<float*>(tensor.MutableData());
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
    const auto* first = static_cast<const float*>(data.get());
    return std::vector<float>(first, first + Count(kDepthShape));
  }

 private:
  // Whether an input has this name. MindIR names an input <graph>:<argument>; Lite may drop the first part.
  static bool IsNamed(const std::string& full, const std::string& name) {
    return full == name ||
           (full.size() > name.size() && full.compare(full.size() - name.size(), name.size(), name) == 0 &&
            full[full.size() - name.size() - 1] == ':');
  }

  [[noreturn]] void Refuse(const std::string& found, const std::string& expected) const {
    throw Error(path_.string() + ": " + found + ", expected " + expected + ": is it another net's MindIR?");
  }

  void CheckInputs() {
    if (inputs_.size() != ports_.size()) {
      Refuse(std::to_string(inputs_.size()) + " inputs", std::to_string(ports_.size()));
    }
    for (const auto& port : ports_) {
      const auto found = std::find_if(inputs_.begin(), inputs_.end(),
                                      [&port](const auto& tensor) { return IsNamed(tensor.Name(), port.name); });
      if (found == inputs_.end()) {
        Refuse("no input named " + port.name + " (the first is " + inputs_[0].Name() + ")", port.name);
      }
      CheckTensor(*found, "input " + port.name, port.shape);
      order_.push_back(static_cast<size_t>(found - inputs_.begin()));
    }
  }

  void CheckOutputs(const std::vector<mindspore::MSTensor>& outputs) const {
    if (outputs.size() != 1) {
      Refuse(std::to_string(outputs.size()) + " outputs", "1");
    }
    CheckTensor(outputs[0], "output", kDepthShape);
  }

  void CheckTensor(const mindspore::MSTensor& tensor, const std::string& what,
                   const std::vector<int64_t>& shape) const {
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
  std::vector<size_t> order_;  // inputs_[order_[i]] belongs to ports_[i]
};

struct Image {
  fs::path path;
  std::vector<float> rgb;
  std::string problem;  // why the file could not be read; empty if it was read
};

struct Prediction {
  fs::path path;
  std::vector<float> log_depth;
};

// Reads the files into the queue, then closes it. Stops if the queue was closed.
void ReadAll(const std::vector<fs::path>& files, depthnet::BoundedQueue<Image>* images) {
  for (const auto& file : files) {
    Image image{file, {}, {}};
    try {
      image.rgb = depthnet::ReadFloats(file, Count(kRgbShape));
    } catch (const std::exception& error) {
      image.problem = error.what();
    }
    if (!images->Push(std::move(image))) {
      return;
    }
  }
  images->Close();
}

// Writes the predictions of the queue to files until it is closed. Appends a message to `problems` for each failure.
void WriteAll(depthnet::BoundedQueue<Prediction>* predictions, std::vector<std::string>* problems) {
  while (auto prediction = predictions->Pop()) {
    try {
      depthnet::WriteFile(prediction->path, prediction->log_depth.data(), prediction->log_depth.size() * sizeof(float));
    } catch (const std::exception& error) {
      problems->push_back(error.what());
    }
  }
}

// Predicts the log depth of an image with both nets. Throws Error if a net fails or the result is not finite.
std::vector<float> Infer(Network* coarse, Network* fine, const Image& image) {
  const auto coarse_log_depth = coarse->Run({&image.rgb});
  auto log_depth = fine->Run({&image.rgb, &coarse_log_depth});
  if (!depthnet::AllFinite(log_depth)) {
    throw Error(image.path.string() + ": the prediction is not finite");
  }
  return log_depth;
}

struct Outcome {
  std::vector<std::string> problems;  // a message per failed image
  std::vector<double> milliseconds;   // of the nets, per predicted image
  size_t written = 0;                 // number of written images
};

// Predicts all files. Other threads read the next files and write the results meanwhile.
Outcome RunAll(const std::vector<fs::path>& files, const fs::path& result_path, Network* coarse, Network* fine) {
  depthnet::BoundedQueue<Image> images(kQueueCapacity);
  depthnet::BoundedQueue<Prediction> predictions(kQueueCapacity);
  Outcome outcome;
  std::vector<std::string> write_problems;
  std::thread reader(ReadAll, std::cref(files), &images);
  std::thread writer(WriteAll, &predictions, &write_problems);
  while (auto image = images.Pop()) {
    if (!image->problem.empty()) {
      outcome.problems.push_back(image->problem);
      continue;
    }
    try {
      const auto begin = std::chrono::steady_clock::now();
      auto log_depth = Infer(coarse, fine, *image);
      const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - begin;
      outcome.milliseconds.push_back(elapsed.count());
      predictions.Push({result_path / (image->path.stem().string() + "_0.bin"), std::move(log_depth)});
    } catch (const std::exception& error) {
      outcome.problems.push_back(error.what());
    }
  }
  predictions.Close();
  reader.join();
  writer.join();
  outcome.written = outcome.milliseconds.size() - write_problems.size();
  outcome.problems.insert(outcome.problems.end(), write_problems.begin(), write_problems.end());
  return outcome;
}

// Converts the value of option --`name` to an integer >= 0. Throws Error.
int Number(const std::string& name, const std::string& text) {
  size_t used = 0;
  int value = -1;
  try {
    value = std::stoi(text, &used);
  } catch (const std::exception&) {
  }
  if (text.empty() || used != text.size() || value < 0) {
    throw Error("--" + name + " " + text + ": expected a whole number");
  }
  return value;
}

// Parses a command line. Returns nothing if it has --help. Throws Error.
std::optional<Options> Parse(int argc, char** argv) {
  Options options;
  const std::vector<std::pair<const char*, std::function<void(const std::string&)>>> setters = {
      {"coarse_mindir", [&](const std::string& text) { options.coarse_mindir = text; }},
      {"fine_mindir", [&](const std::string& text) { options.fine_mindir = text; }},
      {"dataset_path", [&](const std::string& text) { options.dataset_path = text; }},
      {"result_path", [&](const std::string& text) { options.result_path = text; }},
      {"time_path", [&](const std::string& text) { options.time_path = text; }},
      {"device_type", [&](const std::string& text) { options.device_type = text; }},
      {"device_id", [&](const std::string& text) { options.device_id = Number("device_id", text); }},
      {"precision", [&](const std::string& text) { options.precision = text; }},
      {"threads", [&](const std::string& text) { options.threads = Number("threads", text); }},
  };
  std::vector<option> known;
  for (const auto& setter : setters) {
    known.push_back({setter.first, required_argument, nullptr, 0});
  }
  known.push_back({"help", no_argument, nullptr, 0});
  known.push_back({nullptr, 0, nullptr, 0});
  opterr = 0;
  int index = 0;
  for (int found = 0; (found = getopt_long(argc, argv, ":", known.data(), &index)) != -1;) {
    if (found != 0) {
      throw Error(std::string(argv[optind - 1]) + (found == ':' ? ": expected a value after it" : ": unknown option") +
                  "; --help lists all");
    }
    if (static_cast<size_t>(index) == setters.size()) {
      return std::nullopt;
    }
    setters[static_cast<size_t>(index)].second(optarg);
  }
  if (optind < argc) {
    throw Error(std::string(argv[optind]) + ": unexpected; --help lists the options");
  }
  return options;
}

// Throws Error if an option is missing or has a wrong value.
void CheckOptions(const Options& options) {
  if (options.coarse_mindir.empty() || options.fine_mindir.empty() || options.dataset_path.empty()) {
    throw Error("--coarse_mindir, --fine_mindir and --dataset_path are required; --help lists all");
  }
  if (options.device_type != "Ascend" && options.device_type != "CPU") {
    throw Error("--device_type " + options.device_type + ": expected Ascend or CPU");
  }
  if (options.precision != "fp32" && options.precision != "fp16") {
    throw Error("--precision " + options.precision + ": expected fp32 or fp16");
  }
  if (options.threads < 1) {
    throw Error("--threads counts from 1");
  }
}

// Predicts the images and writes the results and the report. Returns the exit code. Throws Error.
int Run(const Options& options) {
  CheckOptions(options);
  const auto files = depthnet::ListInputs(options.dataset_path);
  depthnet::MakeWritable(options.result_path);
  depthnet::MakeWritable(options.time_path);
  Network coarse(options.coarse_mindir, {{"rgb", kRgbShape}}, options);
  Network fine(options.fine_mindir, {{"rgb", kRgbShape}, {"coarse_log_depth", kDepthShape}}, options);

  const auto outcome = RunAll(files, options.result_path, &coarse, &fine);
  for (const auto& problem : outcome.problems) {
    std::cerr << "error: " << problem << std::endl;
  }
  const auto report = depthnet::Report(depthnet::Summarize(outcome.milliseconds));
  depthnet::WriteFile(fs::path(options.time_path) / "test_perform_static.txt", report.data(), report.size());
  std::cout << outcome.written << " of " << files.size() << " images, " << options.device_type << " "
            << options.precision << "\n"
            << report << std::flush;
  return outcome.problems.empty() && std::cout ? 0 : kSomeFilesFailed;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = Parse(argc, argv);
    if (!options) {
      std::cout << kUsage;
      return 0;
    }
    return Run(*options);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return kUserMistake;
  }
}
