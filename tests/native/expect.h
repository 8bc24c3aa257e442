// The assertions of the native tests: they hold in every build type, and say what was expected.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#define EXPECT(condition)                                                           \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                 \
    }                                                                               \
  } while (false)

// The statement throws `Type`, with `part` somewhere in its message; the exception is returned.
#define EXPECT_THROWS(Type, statement, part)                                                           \
  [&] {                                                                                                \
    try {                                                                                              \
      statement;                                                                                       \
    } catch (const Type& error) {                                                                      \
      if (std::string(error.what()).find(part) == std::string::npos) {                                 \
        std::fprintf(stderr, "%s:%d: \"%s\" does not hold \"%s\"\n", __FILE__, __LINE__, error.what(), \
                     std::string(part).c_str());                                                       \
        std::abort();                                                                                  \
      }                                                                                                \
      return error;                                                                                    \
    }                                                                                                  \
    std::fprintf(stderr, "%s:%d: expected " #Type " from %s\n", __FILE__, __LINE__, #statement);       \
    std::abort();                                                                                      \
  }()
