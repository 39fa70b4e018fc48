#include "trace.h"

#include <cstdlib>
#include <fstream>
#include <mutex>
#include <set>
#include <string>

namespace {
constexpr int kFloat64 = 11;

struct Trace {
  std::mutex mutex;
  std::set<std::string> operators, written;

  // EMULATED_TRACE: a file to which every process appends each name, once.
  void Write(const std::string& name) {
    const char* path = getenv("EMULATED_TRACE");
    if (path && written.insert(name).second) std::ofstream(path, std::ios::app) << name + "\n";
  }
};

// Never destroyed: MindSpore's threads call operators until the process is gone.
Trace& TheTrace() {
  static auto* trace = new Trace;
  return *trace;
}
}  // namespace

void trace_operator(const char* name) {
  Trace& trace = TheTrace();
  std::lock_guard<std::mutex> lock(trace.mutex);
  trace.operators.insert(name);
  trace.Write(name);
}

void trace_type(int type) {
  if (type == kFloat64) trace_operator("float64");
}

void trace_device(int device) {
  Trace& trace = TheTrace();
  std::lock_guard<std::mutex> lock(trace.mutex);
  trace.Write("device " + std::to_string(device));
}

const char* emulator_operators() {
  static std::string text;
  Trace& trace = TheTrace();
  std::lock_guard<std::mutex> lock(trace.mutex);
  text.clear();
  for (const auto& name : trace.operators) text += name + "\n";
  trace.operators.clear();
  return text.c_str();
}
