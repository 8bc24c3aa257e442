#include "plan/json_reader.h"

#include <charconv>
#include <limits>

#include "core/error.h"

namespace pipert {
namespace {

constexpr size_t max_shown = 24;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The bytes that follow a lead byte of UTF-8; -1 if it is none.
int continuation_bytes(unsigned char lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return 1;
  if (lead >= 0xE0 && lead <= 0xEF) return 2;
  if (lead >= 0xF0 && lead <= 0xF4) return 3;
  return -1;
}

}  // namespace

void JsonReader::fail(const std::string& message) const {
  std::string place;
  for (const std::string_view key : path_) place.append(place.empty() ? "" : ".").append(key);
  for (const int64_t index : indices_) place.append("[").append(std::to_string(index)).append("]");
  if (!place.empty()) place += " ";
  throw PlanError("plan: " + place + "(byte " + std::to_string(position_) + "): " + message);
}

void JsonReader::fail_expected(const char* what) {
  skip_space();
  if (position_ >= text_.size()) fail(std::string("expected ") + what + ", found the end of the text");
  std::string shown;
  for (const char c : text_.substr(position_, max_shown)) {
    if (c == '\n' || c == '\r') break;
    shown += c >= 0x20 && c < 0x7F ? c : '?';
  }
  if (position_ + shown.size() < text_.size()) shown += "...";
  fail(std::string("expected ") + what + ", found " + shown);
}

void JsonReader::skip_space() {
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
    ++position_;
  }
}

bool JsonReader::take(char c) {
  skip_space();
  if (position_ >= text_.size() || text_[position_] != c) return false;
  ++position_;
  return true;
}

void JsonReader::expect(char c, const char* what) {
  if (!take(c)) fail_expected(what);
}

void JsonReader::object(std::initializer_list<Member> members) {
  expect('{', "an object");
  std::vector<bool> seen(members.size(), false);
  if (!take('}')) {
    do {
      skip_space();
      const std::string_view key = string();
      size_t i = 0;
      while (i < members.size() && members.begin()[i].key != key) ++i;
      if (i == members.size()) fail("unknown key \"" + std::string(key.substr(0, max_shown)) + "\"");
      if (seen[i]) fail("duplicate key \"" + std::string(key) + "\"");
      seen[i] = true;
      path_.push_back(members.begin()[i].key);
      expect(':', "':'");
      members.begin()[i].read();
      path_.pop_back();
    } while (take(','));
    expect('}', "',' or '}'");
  }
  for (size_t i = 0; i < members.size(); ++i)
    if (!seen[i]) fail("missing key \"" + std::string(members.begin()[i].key) + "\"");
}

int32_t JsonReader::integer() {
  skip_space();
  const size_t first = position_;
  size_t last = first;
  if (last < text_.size() && text_[last] == '-') ++last;
  const size_t digits = last;
  while (last < text_.size() && is_digit(text_[last])) ++last;
  const bool leading_zero = last - digits > 1 && text_[digits] == '0';
  const bool fraction = last < text_.size() && (text_[last] == '.' || text_[last] == 'e' || text_[last] == 'E');
  if (last == digits || leading_zero || fraction) fail_expected("an integer");
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text_.data() + first, text_.data() + last, value);
  if (error != std::errc{} || end != text_.data() + last) fail_expected("an integer within 32 bits");
  position_ = last;
  return value;
}

std::vector<int32_t> JsonReader::integers() {
  std::vector<int32_t> values;
  array([&] { values.push_back(integer()); });
  return values;
}

std::string_view JsonReader::string() {
  expect('"', "a string");
  const size_t first = position_;
  bool ascii = true;
  for (size_t i = first; i < text_.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text_[i]);
    if (c == '"') {
      position_ = i + 1;
      const std::string_view value = text_.substr(first, i - first);
      if (!ascii) check_utf8(value);
      return value;
    }
    if (c == '\\') return escaped_string();
    if (c < 0x20) fail("a control character in a string");
    ascii = ascii && c < 0x80;
  }
  fail("a string without an end");
}

std::string_view JsonReader::escaped_string() {
  buffer_.clear();
  while (position_ < text_.size()) {
    const char c = text_[position_++];
    if (c == '"') {
      check_utf8(buffer_);
      return buffer_;
    }
    if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
    if (c == '\\') {
      take_escape();
    } else {
      buffer_ += c;
    }
  }
  fail("a string without an end");
}

void JsonReader::take_escape() {
  constexpr std::string_view names = "\"\\/bfnrt";
  constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
  const char c = position_ < text_.size() ? text_[position_++] : '\0';
  if (const size_t i = names.find(c); i != std::string_view::npos) {
    buffer_ += meanings[i];
    return;
  }
  if (c != 'u') fail("an unknown escape in a string");
  uint32_t code_point = take_hex4();
  if (code_point >= 0xDC00 && code_point <= 0xDFFF) fail("half of a surrogate pair in a string");
  if (code_point >= 0xD800 && code_point <= 0xDBFF) {
    if (text_.substr(position_, 2) != "\\u") fail("half of a surrogate pair in a string");
    position_ += 2;
    const uint32_t low = take_hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair in a string");
    code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
  }
  append_utf8(code_point);
}

uint32_t JsonReader::take_hex4() {
  const std::string_view hex = text_.substr(position_, 4);
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), value, 16);
  if (hex.size() < 4 || error != std::errc{} || end != hex.data() + 4) fail("\\u needs four hexadecimal digits");
  position_ += 4;
  return value;
}

void JsonReader::append_utf8(uint32_t code_point) {
  const auto append = [&](uint32_t byte) { buffer_ += static_cast<char>(byte); };
  if (code_point < 0x80) {
    append(code_point);
  } else if (code_point < 0x800) {
    append(0xC0 | code_point >> 6);
    append(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    append(0xE0 | code_point >> 12);
    append(0x80 | (code_point >> 6 & 0x3F));
    append(0x80 | (code_point & 0x3F));
  } else {
    append(0xF0 | code_point >> 18);
    append(0x80 | (code_point >> 12 & 0x3F));
    append(0x80 | (code_point >> 6 & 0x3F));
    append(0x80 | (code_point & 0x3F));
  }
}

void JsonReader::check_utf8(std::string_view text) const {
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) continue;
    const int more = continuation_bytes(lead);
    if (more < 0 || i + more >= text.size()) fail("a string that is not UTF-8");
    const unsigned char second = static_cast<unsigned char>(text[i + 1]);
    const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
    const bool outside = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
    if (overlong || outside) fail("a string that is not UTF-8");
    for (int k = 0; k < more; ++k)
      if ((static_cast<unsigned char>(text[++i]) & 0xC0) != 0x80) fail("a string that is not UTF-8");
  }
}

void JsonReader::end() {
  skip_space();
  if (position_ < text_.size()) fail_expected("the end of the text");
}

}  // namespace pipert
