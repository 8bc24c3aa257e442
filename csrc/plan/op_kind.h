// The op table's C++ side: the enums, their texts and each kind's lane, generated from pipert/ops.py.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace pipert {

enum class LaneKind : uint8_t {
#define PIPERT_LANE_KIND(name, text) name,
#define PIPERT_OP_KIND(name, text, lane, scope)
#include "op_kinds.inc"
#undef PIPERT_OP_KIND
#undef PIPERT_LANE_KIND
};

enum class OpKind : uint8_t {
#define PIPERT_LANE_KIND(name, text)
#define PIPERT_OP_KIND(name, text, lane, scope) name,
#include "op_kinds.inc"
#undef PIPERT_OP_KIND
#undef PIPERT_LANE_KIND
};

// What one op is about: a microbatch of a stage, a stage as a whole, a rank (which then stands in place of the stage),
// a microbatch on a rank's shard of the vocabulary (likewise), or a microbatch by all ranks at once.
enum class Scope : uint8_t { MICROBATCH, STAGE, RANK, SHARD, MEETING };

struct LaneKindRow {
  LaneKind kind;
  std::string_view text;
};

struct OpKindRow {
  OpKind kind;
  std::string_view text;
  LaneKind lane;
  Scope scope;
};

inline constexpr auto lane_kind_table = std::to_array<LaneKindRow>({
#define PIPERT_LANE_KIND(name, text) {LaneKind::name, text},
#define PIPERT_OP_KIND(name, text, lane, scope)
#include "op_kinds.inc"
#undef PIPERT_OP_KIND
#undef PIPERT_LANE_KIND
});

inline constexpr auto op_kind_table = std::to_array<OpKindRow>({
#define PIPERT_LANE_KIND(name, text)
#define PIPERT_OP_KIND(name, text, lane, scope) {OpKind::name, text, LaneKind::lane, Scope::scope},
#include "op_kinds.inc"
#undef PIPERT_OP_KIND
#undef PIPERT_LANE_KIND
});

constexpr std::string_view text_of(LaneKind kind) { return lane_kind_table[static_cast<size_t>(kind)].text; }
constexpr std::string_view text_of(OpKind kind) { return op_kind_table[static_cast<size_t>(kind)].text; }
constexpr LaneKind lane_of(OpKind kind) { return op_kind_table[static_cast<size_t>(kind)].lane; }
constexpr bool is_transfer(OpKind kind) { return lane_of(kind) == LaneKind::SEND || lane_of(kind) == LaneKind::RECV; }
constexpr Scope scope_of(OpKind kind) { return op_kind_table[static_cast<size_t>(kind)].scope; }
constexpr bool has_microbatch(OpKind kind) { return scope_of(kind) != Scope::STAGE && scope_of(kind) != Scope::RANK; }
constexpr bool is_meeting(OpKind kind) { return scope_of(kind) == Scope::MEETING; }
constexpr bool is_of_rank(OpKind kind) { return scope_of(kind) == Scope::RANK || scope_of(kind) == Scope::SHARD; }

constexpr std::optional<LaneKind> find_lane_kind(std::string_view text) {
  for (const LaneKindRow& row : lane_kind_table)
    if (row.text == text) return row.kind;
  return std::nullopt;
}

constexpr std::optional<OpKind> find_op_kind(std::string_view text) {
  for (const OpKindRow& row : op_kind_table)
    if (row.text == text) return row.kind;
  return std::nullopt;
}

}  // namespace pipert
