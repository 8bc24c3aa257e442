#include <algorithm>
#include <array>
#include <limits>

#include "core/error.h"
#include "plan/json_reader.h"
#include "plan/plan.h"

namespace pipert {
namespace {

constexpr size_t max_json_bytes = size_t{1} << 30;  // keeps every row number well within int32

// FNV-1a. It tells plans apart that differ by accident; the plan file's sha256 is what detects changed files.
uint64_t fingerprint_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return hash;
}

// Row: Payload.
constexpr auto payload_texts = std::to_array<std::string_view>({"input", "grad", "norm", "total"});

// The columns as they stand in the text.
struct Columns {
  std::vector<int32_t> lane_rank, lane_peer, slot_rank, slot_stage;
  std::vector<LaneKind> lane_kind;
  std::vector<Payload> slot_payload;
};

template <typename T>
void check_lengths(const char* table, std::initializer_list<std::pair<const char*, T>> columns) {
  for (const auto& [name, length] : columns)
    if (length != columns.begin()->second)
      throw PlanError("plan: the columns of " + std::string(table) + " differ in length: " + columns.begin()->first +
                      " has " + std::to_string(columns.begin()->second) + ", " + name + " has " +
                      std::to_string(length));
}

void check_range(const std::string& what, int64_t value, int64_t low, int64_t high, ErrorContext context = {}) {
  if (value >= low && value <= high) return;
  throw PlanError("plan: " + what + ": expected " + std::to_string(low) + ".." + std::to_string(high) + ", found " +
                      std::to_string(value),
                  std::move(context));
}

void read_lanes(JsonReader& json, Columns& columns) {
  json.object({
      {"rank", [&] { columns.lane_rank = json.integers(); }},
      {"kind",
       [&] {
         json.array([&] {
           const std::string_view text = json.string();
           const std::optional<LaneKind> kind = find_lane_kind(text);
           if (!kind) json.fail("unknown lane kind \"" + std::string(text.substr(0, 24)) + "\"");
           columns.lane_kind.push_back(*kind);
         });
       }},
      {"peer", [&] { columns.lane_peer = json.integers(); }},
  });
}

void read_slots(JsonReader& json, Columns& columns) {
  json.object({
      {"rank", [&] { columns.slot_rank = json.integers(); }},
      {"stage", [&] { columns.slot_stage = json.integers(); }},
      {"payload",
       [&] {
         json.array([&] {
           const std::string_view text = json.string();
           const auto payload = std::find(payload_texts.begin(), payload_texts.end(), text);
           if (payload == payload_texts.end()) json.fail("unknown payload \"" + std::string(text.substr(0, 24)) + "\"");
           columns.slot_payload.push_back(static_cast<Payload>(payload - payload_texts.begin()));
         });
       }},
  });
}

void read_ops(JsonReader& json, Plan& plan) {
  json.object({
      {"text",
       [&] {
         json.array([&] {
           const std::string_view text = json.string();
           const std::optional<Op> op = parse_op(text);
           if (!op) json.fail("not an op: \"" + std::string(text.substr(0, 40)) + "\"");
           plan.ops.push_back(*op);
         });
       }},
      {"lane", [&] { plan.op_lane = json.integers(); }},
      {"slot", [&] { plan.op_slot = json.integers(); }},
      {"dep_offsets", [&] { plan.dep_offsets = json.integers(); }},
      {"deps", [&] { plan.deps = json.integers(); }},
  });
}

void read(JsonReader& json, Plan& plan, Columns& columns) {
  json.object({
      {"name", [&] { plan.name = json.string(); }},
      {"recv_depth", [&] { plan.recv_depth = json.integer(); }},
      {"paths", [&] { json.array([&] { plan.paths.push_back(json.integers()); }); }},
      {"path_of", [&] { plan.path_of = json.integers(); }},
      {"lanes", [&] { read_lanes(json, columns); }},
      {"slots", [&] { read_slots(json, columns); }},
      {"ops", [&] { read_ops(json, plan); }},
  });
  json.end();
}

// Sizes, and the paths: over ranks 0..num_ranks-1, each with a stage.
void check_sizes(Plan& plan) {
  constexpr int64_t any = std::numeric_limits<int32_t>::max();
  check_range("number of paths", static_cast<int64_t>(plan.paths.size()), 1, any);
  plan.num_stages = static_cast<int32_t>(plan.paths[0].size());
  plan.num_microbatches = static_cast<int32_t>(plan.path_of.size());
  check_range("number of stages", plan.num_stages, 1, any);
  check_range("number of microbatches", plan.num_microbatches, 1, any);
  check_range("recv_depth", plan.recv_depth, 1, any);
  const int64_t num_pairs = int64_t{plan.num_stages} * plan.num_microbatches;
  if (num_pairs > plan.num_ops())
    throw PlanError("plan: " + std::to_string(plan.num_stages) + " stages x " + std::to_string(plan.num_microbatches) +
                    " microbatches: expected at least " + std::to_string(num_pairs) + " ops, found " +
                    std::to_string(plan.num_ops()));
  const int64_t num_paths = static_cast<int64_t>(plan.paths.size());
  for (int32_t microbatch = 0; microbatch < plan.num_microbatches; ++microbatch)
    check_range("path of microbatch " + std::to_string(microbatch), plan.path_of[microbatch], 0, num_paths - 1);
  for (int64_t number = 0; number < num_paths; ++number)
    if (plan.paths[number].size() != plan.paths[0].size())
      throw PlanError("plan: path " + std::to_string(number) + ": expected the " + std::to_string(plan.num_stages) +
                      " stages of path 0, found " + std::to_string(plan.paths[number].size()) +
                      ": replicas do not match");
  std::vector<bool> has_stage(plan.num_stages * num_paths, false);  // per rank
  for (int64_t number = 0; number < num_paths; ++number) {
    const std::vector<int32_t>& path = plan.paths[number];
    for (size_t stage = 0; stage < path.size(); ++stage) {
      check_range("rank of stage " + std::to_string(stage) + " on path " + std::to_string(number), path[stage], 0,
                  static_cast<int64_t>(has_stage.size()) - 1);
      has_stage[path[stage]] = true;
      plan.num_ranks = std::max(plan.num_ranks, path[stage] + 1);
    }
  }
  for (int32_t rank = 0; rank < plan.num_ranks; ++rank)
    if (!has_stage[rank])
      throw PlanError("plan: rank " + std::to_string(rank) + ": expected at least one stage, found none",
                      {rank, {}, {}});
}

void make_lanes(Plan& plan, const Columns& columns) {
  check_lengths<size_t>(
      "lanes",
      {{"rank", columns.lane_rank.size()}, {"kind", columns.lane_kind.size()}, {"peer", columns.lane_peer.size()}});
  for (size_t i = 0; i < columns.lane_rank.size(); ++i) {
    const std::string lane = "lane " + std::to_string(i);
    const bool edge = columns.lane_kind[i] == LaneKind::SEND || columns.lane_kind[i] == LaneKind::RECV;
    check_range("rank of " + lane, columns.lane_rank[i], 0, plan.num_ranks - 1);
    check_range("peer of " + lane, columns.lane_peer[i], edge ? 0 : -1, edge ? plan.num_ranks - 1 : -1);
    plan.lanes.push_back({columns.lane_rank[i], columns.lane_kind[i], columns.lane_peer[i]});
  }
}

void make_slots(Plan& plan, const Columns& columns) {
  check_lengths<size_t>("slots", {{"rank", columns.slot_rank.size()},
                                  {"stage", columns.slot_stage.size()},
                                  {"payload", columns.slot_payload.size()}});
  for (size_t i = 0; i < columns.slot_rank.size(); ++i) {
    const std::string slot = "slot " + std::to_string(i);
    check_range("rank of " + slot, columns.slot_rank[i], 0, plan.num_ranks - 1);
    const bool of_rank = columns.slot_payload[i] == Payload::NORM || columns.slot_payload[i] == Payload::TOTAL;
    check_range("stage of " + slot, columns.slot_stage[i], 0, (of_rank ? plan.num_ranks : plan.num_stages) - 1);
    plan.slots.push_back({columns.slot_rank[i], columns.slot_stage[i], columns.slot_payload[i]});
  }
}

// Every index of every op, so that nothing after this needs to look before it reads.
void check_ops(const Plan& plan) {
  check_lengths<size_t>("ops",
                        {{"text", plan.ops.size()}, {"lane", plan.op_lane.size()}, {"slot", plan.op_slot.size()}});
  if (plan.dep_offsets.size() != plan.ops.size() + 1)
    throw PlanError("plan: ops.dep_offsets: expected " + std::to_string(plan.ops.size() + 1) + " entries, found " +
                    std::to_string(plan.dep_offsets.size()));
  const int64_t num_lanes = static_cast<int64_t>(plan.lanes.size());
  const int64_t num_slots = static_cast<int64_t>(plan.slots.size());
  const int64_t num_deps = static_cast<int64_t>(plan.deps.size());
  check_range("ops.dep_offsets[0]", plan.dep_offsets[0], 0, 0);
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    const auto check = [&](const char* what, int64_t value, int64_t low, int64_t high) {
      if (value >= low && value <= high) return;
      const std::string text = plan.text(op);
      check_range("op " + std::to_string(op) + " (" + text + "): " + what, value, low, high, {{}, text, {}});
    };
    for (const ComputePart& part : plan.ops[op].compute_parts()) {
      check("stage", part.stage, 0, plan.num_stages - 1);
      check("microbatch", part.microbatch, 0, plan.num_microbatches - 1);
    }
    const bool of_rank = is_of_rank(plan.ops[op].kind);
    if (!is_meeting(plan.ops[op].kind))
      check(of_rank ? "rank" : "stage", plan.ops[op].stage, 0, (of_rank ? plan.num_ranks : plan.num_stages) - 1);
    if (has_microbatch(plan.ops[op].kind)) check("microbatch", plan.ops[op].microbatch, 0, plan.num_microbatches - 1);
    check("lane", plan.op_lane[op], 0, num_lanes - 1);
    check("slot", plan.op_slot[op], -1, num_slots - 1);
    check("end in dep_offsets", plan.dep_offsets[op + 1], plan.dep_offsets[op], num_deps);
  }
  check_range("the last of ops.dep_offsets", plan.dep_offsets.back(), num_deps, num_deps);
  for (size_t i = 0; i < plan.deps.size(); ++i)
    if (plan.deps[i] < 0 || plan.deps[i] >= plan.num_ops())
      check_range("ops.deps[" + std::to_string(i) + "]", plan.deps[i], 0, plan.num_ops() - 1);
}

void derive(Plan& plan) {
  plan.lane_ops.resize(plan.lanes.size());
  plan.lane_position.reserve(plan.ops.size());
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    std::vector<int32_t>& lane = plan.lane_ops[plan.op_lane[op]];
    plan.lane_position.push_back(static_cast<int32_t>(lane.size()));
    lane.push_back(op);
  }
}

}  // namespace

Plan parse_plan(std::string_view json) {
  if (json.size() > max_json_bytes)
    throw PlanError("plan: expected at most " + std::to_string(max_json_bytes) + " bytes, found " +
                    std::to_string(json.size()));
  Plan plan;
  Columns columns;
  JsonReader reader(json);
  read(reader, plan, columns);
  plan.fingerprint = fingerprint_of(json);
  check_sizes(plan);
  make_lanes(plan, columns);
  make_slots(plan, columns);
  check_ops(plan);
  derive(plan);
  return plan;
}

}  // namespace pipert
