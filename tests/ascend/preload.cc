// What is asked for by name while the program runs, and how many cores the host has. This library is preloaded, so that
// these stand before the C library's own.

#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "trace.h"

namespace {
// The operators of CANN's newer interface are some hundred pairs of functions, aclnnAdd and aclnnAddGetWorkspaceSize,
// which MindSpore looks up by name. Each name gets two functions of its own, so that its calls are told from others'.
// Both are looked at: MindSpore asks for the workspace once, and then launches as often as the shapes stay the same.
constexpr size_t kOperators = 512;
std::array<std::string, kOperators> names;

// The arguments that the caller has pushed, as the System V ABI for x86-64 has them.
struct Stack {
  uintptr_t words[64];
};

// aclnn...GetWorkspaceSize(tensors and attributes..., uint64_t *size, aclOpExecutor **executor): what comes before the
// last two differs by operator. Those two are variables of the caller, and the first pair of neighbours to be addresses
// in its stack frames. They get: no memory needed, and something to hand to aclnnAdd.
int FillWorkspaceSize(const uintptr_t* registers, const Stack& stack) {
  static char executor[256];
  const auto here = reinterpret_cast<uintptr_t>(&stack);
  const auto is_local = [here](uintptr_t word) { return word > here && word < here + (1 << 18) && word % 8 == 0; };
  uintptr_t previous = 0;
  for (int i = 0; i < 6 + 64; ++i) {
    const uintptr_t word = i < 6 ? registers[i] : stack.words[i - 6];
    if (is_local(previous) && is_local(word)) {
      *reinterpret_cast<uint64_t*>(previous) = 0;
      *reinterpret_cast<void**>(word) = executor;
      return 0;
    }
    previous = word;
  }
  return 1;
}

template <size_t index>
int GetWorkspaceSize(uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f, Stack stack) {
  trace_operator(names[index].c_str());
  const uintptr_t registers[] = {a, b, c, d, e, f};
  return FillWorkspaceSize(registers, stack);
}

template <size_t index>
int Launch() {
  trace_operator(names[index].c_str());
  return 0;
}

struct Functions {
  decltype(&GetWorkspaceSize<0>) get_workspace_size;
  decltype(&Launch<0>) launch;
};

template <size_t... index>
constexpr auto MakeFunctions(std::index_sequence<index...>) {
  return std::array{Functions{GetWorkspaceSize<index>, Launch<index>}...};
}
constexpr auto functions = MakeFunctions(std::make_index_sequence<kOperators>());

long Nothing() { return 0; }

// The functions of an operator.
const Functions& Operator(const std::string& name) {
  static std::mutex mutex;
  static std::map<std::string, size_t> known;
  std::lock_guard<std::mutex> lock(mutex);
  const size_t index = known.emplace(name, known.size()).first->second;
  if (index >= kOperators) abort();
  names[index] = name;
  return functions[index];
}

bool StartsWith(const std::string& text, const char* start) { return text.rfind(start, 0) == 0; }

bool IsCann(const std::string& name) {
  for (const char* start :
       {"acl", "Hccl", "hccl", "Hcom", "hcom", "prof", "Prof", "rt", "InitHuge", "UnInitHuge", "ReleaseHuge", "InitPTA",
        "SetPTA", "CanUsePTA", "PTAGet", "AddTensorAddr", "Nnopbase", "GetHash", "Mki"}) {
    if (StartsWith(name, start)) return true;
  }
  return false;
}
}  // namespace

extern "C" {

// dlsym that knows CANN's names: what no library has is an operator, or a function that does nothing.
void* dlsym(void* library, const char* symbol) noexcept {
  static const auto real = reinterpret_cast<void* (*)(void*, const char*)>(dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5"));
  if (void* address = real(library, symbol)) return address;
  if (!IsCann(symbol)) return nullptr;
  const std::string name(symbol), end = "GetWorkspaceSize";
  if (name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0)
    return reinterpret_cast<void*>(Operator(name.substr(0, name.size() - end.size())).get_workspace_size);
  if (StartsWith(name, "aclnn") && name != "aclnnInit") return reinterpret_cast<void*>(Operator(name).launch);
  return reinterpret_cast<void*>(Nothing);
}

// EMULATED_CORES: how many cores MindSpore sees.
int get_nprocs() noexcept {
  const char* cores = getenv("EMULATED_CORES");
  return cores ? atoi(cores) : 16;
}
}
