// Running a piece of a test in a process of its own, with an environment of its own.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

using Environment = std::map<std::string, std::string>;

template <class Body>
pid_t start_child(const Environment& environment, Body body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child != 0) return child;
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
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

// What waitpid() says of a child that ran `body`.
template <class Body>
int status_of_child(const Environment& environment, Body body) {
  return status_of(start_child(environment, body));
}
