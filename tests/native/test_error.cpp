// PIPERT_CHECK and the errors' context.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/error.h"

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

namespace {

void a_check_that_holds_is_silent() { PIPERT_CHECK(1 + 1 == 2, "arithmetic"); }

void a_check_that_fails_names_its_condition_and_message() {
  try {
    PIPERT_CHECK(1 + 1 == 3, "arithmetic");
  } catch (const pipert::Error& error) {
    EXPECT(std::strstr(error.what(), "1 + 1 == 3") != nullptr);
    EXPECT(std::strstr(error.what(), "arithmetic") != nullptr);
    return;
  }
  EXPECT(!"PIPERT_CHECK did not throw");
}

void an_error_carries_its_context_and_class() {
  const pipert::PeerLost error("gone", {.rank = 2, .op = "2F0", .step = 7});
  EXPECT(error.context().rank == 2);
  EXPECT(error.context().op == "2F0");
  EXPECT(error.context().step == 7);
  EXPECT(std::strcmp(error.python_name(), "PeerLost") == 0);
}

}  // namespace

int main() {
  a_check_that_holds_is_silent();
  a_check_that_fails_names_its_condition_and_message();
  an_error_carries_its_context_and_class();
}
