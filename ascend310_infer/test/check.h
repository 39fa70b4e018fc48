// Unit tests without a library: TEST(Name) { CHECK(condition); CHECK_EQ(found, expected); }. The program runs all.
#ifndef DEPTHNET_TEST_CHECK_H_
#define DEPTHNET_TEST_CHECK_H_

#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace check {

inline std::vector<std::pair<std::string, void (*)()>>& Tests() {
  static std::vector<std::pair<std::string, void (*)()>> tests;
  return tests;
}

struct Registered {
  Registered(const char* name, void (*test)()) { Tests().emplace_back(name, test); }
};

[[noreturn]] inline void Fail(const char* file, int line, const std::string& what) {
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

}  // namespace check

#define TEST(name)                                                \
  static void name();                                             \
  static const check::Registered registered_##name(#name, &name); \
  static void name()

#define CHECK(condition) \
  if (!(condition)) check::Fail(__FILE__, __LINE__, "not so: " #condition)
#define CHECK_EQ(found, expected) CHECK((found) == (expected))

int main() {
  int failed = 0;
  for (const auto& [name, test] : check::Tests()) {
    try {
      test();
      std::cout << "passed " << name << "\n";
    } catch (const std::exception& error) {
      std::cout << "FAILED " << name << ": " << error.what() << "\n";
      ++failed;
    }
  }
  std::cout << check::Tests().size() - failed << " of " << check::Tests().size() << " units passed\n";
  return failed == 0 ? 0 : 1;
}

#endif  // DEPTHNET_TEST_CHECK_H_
