#include "plan/op.h"

#include <algorithm>
#include <charconv>

namespace pipert {
namespace {

constexpr std::string_view digits = "0123456789";

// Takes a number without leading zeros off the front of `text`.
std::optional<int32_t> take_number(std::string_view& text) {
  int32_t value = 0;
  if (text.empty() || digits.find(text[0]) == std::string_view::npos) return std::nullopt;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  const size_t length = static_cast<size_t>(end - text.data());
  if (length > 1 && text[0] == '0') return std::nullopt;
  text.remove_prefix(length);
  return value;
}

std::optional<Op> parse_plain(std::string_view text) {
  const std::optional<int32_t> stage = take_number(text);
  const size_t letters = std::min(text.find_first_of(digits), text.size());
  const std::optional<OpKind> kind = find_op_kind(text.substr(0, letters));
  if (!kind || *kind == OpKind::OVERLAP_F_B || stage.has_value() == is_meeting(*kind)) return std::nullopt;
  text.remove_prefix(letters);
  if (!has_microbatch(*kind)) return text.empty() ? std::optional(make_op(*kind, *stage, -1)) : std::nullopt;
  const std::optional<int32_t> microbatch = take_number(text);
  if (!microbatch || !text.empty()) return std::nullopt;
  return make_op(*kind, stage.value_or(-1), *microbatch);
}

std::optional<Op> parse_pair(std::string_view text) {
  const size_t close = text.find(')');
  const size_t middle = text.find(';');
  if (close == std::string_view::npos || middle == std::string_view::npos || middle > close) return std::nullopt;
  if (text.substr(close + 1) != text_of(OpKind::OVERLAP_F_B)) return std::nullopt;
  const std::optional<Op> first = parse_plain(text.substr(1, middle - 1));
  const std::optional<Op> second = parse_plain(text.substr(middle + 1, close - middle - 1));
  if (!first || !second) return std::nullopt;
  if (first->compute_parts().empty() || second->compute_parts().empty()) return std::nullopt;
  return Op{OpKind::OVERLAP_F_B, first->stage, first->microbatch, {first->parts[0], second->parts[0]}};
}

}  // namespace

Op make_op(OpKind kind, int32_t stage, int32_t microbatch) {
  const ComputePart part{kind, stage, microbatch};
  return {kind, stage, microbatch, {part, part}};
}

std::optional<Op> parse_op(std::string_view text) {
  return text.starts_with('(') ? parse_pair(text) : parse_plain(text);
}

std::string to_text(OpKind kind, int32_t stage, int32_t microbatch) {
  std::string text = is_meeting(kind) ? "" : std::to_string(stage);
  text += text_of(kind);
  if (has_microbatch(kind)) text += std::to_string(microbatch);
  return text;
}

std::string to_text(const Op& op) {
  if (op.kind != OpKind::OVERLAP_F_B) return to_text(op.kind, op.stage, op.microbatch);
  const auto& [first, second] = op.parts;
  std::string text = "(";
  text += to_text(first.kind, first.stage, first.microbatch) + ';';
  text += to_text(second.kind, second.stage, second.microbatch) + ')';
  return text += text_of(op.kind);
}

}  // namespace pipert
