// One instruction of a plan, and its text: "2F0", "3RECV_B1", "(2F3;5B1)OVERLAP_F_B", "2UNSHARD", "VBCAST0".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "plan/op_kind.h"

namespace pipert {

// What a compute op does to one (stage, microbatch); an overlapped pair is two of them.
struct ComputePart {
  OpKind kind;
  int32_t stage;
  int32_t microbatch;
  bool operator==(const ComputePart&) const = default;
};

struct Op {
  OpKind kind;
  int32_t stage;  // of an overlapped pair: of its first part; of a kind for ranks: the rank; -1 for all ranks at once
  int32_t microbatch;                // likewise; -1 for a kind that has none
  std::array<ComputePart, 2> parts;  // a microbatch's plain compute op is its own first part; others have none

  // What it does to stages, in this order: two parts of an overlapped pair, one of a plain compute op of a stage, none
  // of others.
  std::span<const ComputePart> compute_parts() const {
    if (lane_of(kind) != LaneKind::COMPUTE || scope_of(kind) != Scope::MICROBATCH) return {};
    return {parts.data(), kind == OpKind::OVERLAP_F_B ? size_t{2} : size_t{1}};
  }
};

Op make_op(OpKind kind, int32_t stage, int32_t microbatch);

// Full match, ASCII digits without leading zeros, numbers within int32; nullopt for any other text.
std::optional<Op> parse_op(std::string_view text);

std::string to_text(const Op& op);
std::string to_text(OpKind kind, int32_t stage, int32_t microbatch);

}  // namespace pipert
