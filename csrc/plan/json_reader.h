// A strict pull reader for the JSON of plans: the caller says what must come next, so depth is the caller's, never the
// input's. Every error is a PlanError that names the place, as a path and as a byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace pipert {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  struct Member {
    std::string_view key;
    std::function<void()> read;  // reads the value
  };

  // An object with exactly these members, each once, in any order.
  void object(std::initializer_list<Member> members);
  // An array; `read_item` reads each value.
  template <typename ReadItem>
  void array(ReadItem&& read_item) {
    expect('[', "an array");
    indices_.push_back(0);
    if (!take(']')) {
      do {
        read_item();
        ++indices_.back();
      } while (take(','));
      expect(']', "',' or ']'");
    }
    indices_.pop_back();
  }
  int32_t integer();
  std::vector<int32_t> integers();
  // Valid until the next call.
  std::string_view string();
  // Nothing but whitespace may be left.
  void end();

  [[noreturn]] void fail(const std::string& message) const;

 private:
  void skip_space();
  bool take(char c);
  void expect(char c, const char* what);
  [[noreturn]] void fail_expected(const char* what);
  std::string_view escaped_string();
  void take_escape();
  uint32_t take_hex4();
  void append_utf8(uint32_t code_point);
  void check_utf8(std::string_view text) const;

  std::string_view text_;
  size_t position_ = 0;
  std::string buffer_;  // of a string with escapes
  std::vector<std::string_view> path_;
  std::vector<int64_t> indices_;  // of the item being read, in each array around it
};

}  // namespace pipert
