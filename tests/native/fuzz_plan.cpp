// Fuzzes the plan loader: `fuzz_plan SECONDS [SEED]` mutates real plans (tests/native/plans) and keeps what reaches new
// code; `fuzz_plan FILE` loads one file, to look at a crash again. A crash leaves its input in fuzz_plan_crash.json.
//
// Self-contained, since libFuzzer comes with clang only; the compiler's trace of the loader's branches is all it needs.
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "plan/plan.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

constexpr size_t max_input_bytes = 64 << 10;

std::array<uint8_t, 1 << 16> branches_now;   // reached by this input
std::array<uint8_t, 1 << 16> branches_ever;  // reached by any input
std::string current_input;

}  // namespace

// Called by the traced code at every branch.
extern "C" void __sanitizer_cov_trace_pc() {
  const auto address = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  branches_now[(address ^ address >> 16) & 0xFFFF] = 1;
}

namespace {

void save_crash() {
  std::ofstream("fuzz_plan_crash.json", std::ios::binary) << current_input;
  std::fprintf(stderr, "fuzz_plan: the input is in fuzz_plan_crash.json\n");
}

// Loads one input as a plan file's plan is loaded. Returns whether it is a valid plan.
bool load(const std::string& input) {
  current_input = input;
  try {
    const pipert::Plan plan = pipert::parse_plan(input);
    pipert::verify(plan);
    for (int32_t op = 0; op < plan.num_ops(); ++op) {
      for (const int32_t dep : plan.deps_of(op)) PIPERT_CHECK(dep < op, "the rows of a valid plan are an order");
      const std::optional<pipert::Op> again = pipert::parse_op(plan.text(op));
      PIPERT_CHECK(again && again->kind == plan.ops[op].kind, "op text round-trips");
    }
    return true;
  } catch (const pipert::PlanError&) {
    return false;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fuzz_plan: not a PlanError: %s\n", error.what());
    save_crash();
    std::exit(1);
  }
}

// Whether the last input reached a branch for the first time.
bool reached_new() {
  bool found = false;
  for (size_t i = 0; i < branches_now.size(); ++i) {
    if (branches_now[i] && !branches_ever[i]) found = true;
    branches_ever[i] |= branches_now[i];
    branches_now[i] = 0;
  }
  return found;
}

class Mutator {
 public:
  Mutator(uint64_t seed, const std::vector<std::string>& corpus) : random_(seed), corpus_(corpus) {}

  size_t below(size_t bound) { return bound == 0 ? 0 : std::uniform_int_distribution<size_t>(0, bound - 1)(random_); }
  const std::string& pick() { return corpus_[below(corpus_.size())]; }

  std::string mutated() {
    std::string text = pick();
    for (size_t round = 1 + below(below(3) == 0 ? 12 : 3); round > 0; --round) mutate(text);
    if (text.size() > max_input_bytes) text.resize(max_input_bytes);
    return text;
  }

 private:
  struct Range {
    size_t begin, length;
  };

  void mutate(std::string& text) {
    switch (below(9)) {
      case 0:  // a byte
        if (!text.empty()) text[below(text.size())] = static_cast<char>(below(256));
        break;
      case 1:  // a byte of JSON's own
        text.insert(below(text.size() + 1), 1, "{}[],:\"\\-0123456789eE.u \n"[below(25)]);
        break;
      case 2:
        erase(text, range(text, 32));
        break;
      case 3: {  // from another place, or another plan
        const std::string& other = pick();
        const Range part = range(other, 64);
        text.insert(below(text.size() + 1), other, part.begin, part.length);
        break;
      }
      case 4:
        replace(text, number(text), interesting_number());
        break;
      case 5:
        replace(text, number(text), copy(text, number(text)));
        break;
      case 6:
        swap(text, number(text), number(text));
        break;
      case 7:
        swap(text, string(text), string(text));
        break;
      case 8:
        replace(text, string(text), copy(text, string(text)));
        break;
    }
  }

  Range range(const std::string& text, size_t max_length) {
    const size_t begin = below(text.size());
    return {begin, std::min(text.size() - begin, 1 + below(max_length))};
  }

  // A run of such characters around or after a random place.
  template <typename Belongs>
  Range run(const std::string& text, Belongs belongs) {
    size_t begin = below(text.size());
    while (begin < text.size() && !belongs(text[begin])) ++begin;
    while (begin > 0 && begin < text.size() && belongs(text[begin - 1])) --begin;
    size_t end = begin;
    while (end < text.size() && belongs(text[end])) ++end;
    return {begin, end - begin};
  }
  Range number(const std::string& text) {
    return run(text, [](char c) { return (c >= '0' && c <= '9') || c == '-'; });
  }
  Range string(const std::string& text) {
    return run(text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || c == '_'; });
  }
  std::string interesting_number() {
    constexpr std::array<const char*, 10> numbers = {"-1", "0",          "1",           "2",          "7",
                                                     "63", "2147483647", "-2147483648", "2147483648", "1e9"};
    return numbers[below(numbers.size())];
  }

  static std::string copy(const std::string& text, Range part) { return text.substr(part.begin, part.length); }
  static void erase(std::string& text, Range part) { text.erase(part.begin, part.length); }
  static void replace(std::string& text, Range part, const std::string& by) {
    text.replace(part.begin, part.length, by);
  }
  static void swap(std::string& text, Range first, Range second) {
    if (first.begin > second.begin) std::swap(first, second);
    if (first.begin + first.length > second.begin) return;
    const std::string moved = copy(text, first);
    const std::string other = copy(text, second);
    replace(text, second, moved);
    replace(text, first, other);
  }

  std::mt19937_64 random_;
  const std::vector<std::string>& corpus_;
};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int fuzz(double seconds, uint64_t seed) {
  std::vector<std::string> corpus;
  for (const auto& entry : std::filesystem::directory_iterator(PIPERT_FUZZ_PLANS)) {
    corpus.push_back(read_file(entry.path()));
    if (!load(corpus.back())) {
      std::fprintf(stderr, "fuzz_plan: %s is no valid plan\n", entry.path().c_str());
      return 1;
    }
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "fuzz_plan: no plans in %s\n", PIPERT_FUZZ_PLANS);
    return 1;
  }
  const size_t num_seeds = corpus.size();
  reached_new();
  Mutator mutator(seed, corpus);
  uint64_t num_runs = 0, num_valid = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    std::string input = mutator.mutated();
    num_valid += load(input);
    ++num_runs;
    if (reached_new()) corpus.push_back(std::move(input));
  }
  size_t num_branches = 0;
  for (const uint8_t reached : branches_ever) num_branches += reached;
  std::printf(
      "fuzz_plan: seed %llu: %llu inputs, %llu of them valid plans; %zu branches; %zu seeds, %zu kept; no fault\n",
      static_cast<unsigned long long>(seed), static_cast<unsigned long long>(num_runs),
      static_cast<unsigned long long>(num_valid), num_branches, num_seeds, corpus.size() - num_seeds);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(save_crash);
#endif
  if (argc == 2 && std::filesystem::is_regular_file(argv[1])) {
    std::printf("%s\n", load(read_file(argv[1])) ? "a valid plan" : "refused");
    return 0;
  }
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}();
  return fuzz(seconds, seed);
}
