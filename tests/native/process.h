// Pieces of tests that run in processes of their own, with environments of their own.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "core/clock.h"
#include "expect.h"

using Environment = std::map<std::string, std::string>;

// The id of a child that runs `body`, and then exits as main() would.
template <class Body>
pid_t start_child(Body body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child != 0) return child;
  body();
  std::exit(0);
}

// What waitpid() says of it.
inline int status_of(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
  }
  return status;
}

// What waitpid() says of a child that ran `body` with more of an environment.
template <class Body>
int status_of_child(const Environment& environment, Body body) {
  return status_of(start_child([&] {
    for (const auto& [variable, value] : environment) setenv(variable.c_str(), value.c_str(), 1);
    body();
  }));
}

// A whole test in a process of its own.
inline void test(const char* name, void (*body)(), const Environment& environment = {}) {
  const int64_t start_ns = pipert::now_ns();
  const int status = status_of_child(environment, body);
  if (status != 0) std::fprintf(stderr, "%s: status %d\n", name, status);
  EXPECT(status == 0);
  EXPECT(pipert::now_ns() - start_ns < 30'000'000'000);
}

#define TEST(body, ...) test(#body, body __VA_OPT__(, ) __VA_ARGS__)

// Carries small things from one process to another.
struct Pipe {
  Pipe() { EXPECT(pipe2(ends, O_CLOEXEC) == 0); }
  template <class Type>
  void put(const Type& value) const {
    EXPECT(write(ends[1], &value, sizeof value) == sizeof value);
  }
  template <class Type>
  Type take() const {
    Type value;
    EXPECT(read(ends[0], &value, sizeof value) == sizeof value);
    return value;
  }
  int ends[2];
};
