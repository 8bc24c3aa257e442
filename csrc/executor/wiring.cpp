#include "executor/wiring.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace pipert {
namespace {

template <typename T>
void add_once(std::vector<T>& list, T value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) list.push_back(value);
}

// Lane objects must exist before dependencies can point at their cursors, and SendLanes need their ops at once. SEND
// ops depend on compute ops only, RECV ops on compute and SEND ops: so RECV dependencies are filled in last.
class Wirer {
 public:
  Wirer(const Plan& plan, Channels& channels, int64_t timeout_ns, std::span<const LinkDelay> delays);

  // One per phase, in this order.
  void add_records();     // before anything points at one
  void count_ops();       // before a thread looks at a cursor
  void add_recv_lanes();  // without dependencies
  void add_send_lanes();  // their threads start at once, but find nothing to do before the first step
  void add_recv_dependencies();
  void add_program();

  Wiring take() { return std::move(wiring_); }

 private:
  bool has_ops_here(size_t lane, LaneKind kind) const;
  LaneKind kind_of(int32_t op) const { return lane_of(plan_.ops[op].kind); }
  Cursor& cursor_of(int32_t op);
  TraceRecord* record(int32_t op) { return &wiring_.records[record_of_[op]]; }
  NvtxOp nvtx_op(int32_t op);
  [[noreturn]] void refuse(int32_t op, int32_t dependency, const char* why) const;

  RecvOp recv_op(int32_t op);
  void add_offers(int32_t op, RecvLane* lane);
  SendOp send_op(int32_t op, int32_t lane);
  std::vector<Dependency> recv_dependencies(int32_t op) const;
  ComputeOp compute_op(int32_t op);

  const Plan& plan_;
  Channels& channels_;
  int64_t timeout_ns_;
  std::span<const LinkDelay> delays_;
  NvtxDomain* nvtx_;                            // null: nobody wants to see the ops
  std::vector<int32_t> record_of_;              // per op; -1 on other processes
  std::vector<std::vector<RecvLane*>> offers_;  // per op: lanes to offer when it has finished
  std::vector<std::vector<int32_t>> feeds_;     // per compute op: indices into send_lanes
  Wiring wiring_;
};

Wirer::Wirer(const Plan& plan, Channels& channels, int64_t timeout_ns, std::span<const LinkDelay> delays)
    : plan_(plan),
      channels_(channels),
      timeout_ns_(timeout_ns),
      delays_(delays),
      nvtx_(NvtxDomain::wanted()),
      record_of_(plan.num_ops(), -1),
      offers_(plan.num_ops()),
      feeds_(plan.num_ops()) {
  wiring_.places.resize(plan.num_ops());
  wiring_.compute = std::vector<Cursor>(plan.num_ranks);
  wiring_.collective = std::vector<Cursor>(plan.num_ranks);
}

void Wirer::add_records() {
  for (int32_t op = 0; op < plan_.num_ops(); ++op) {
    if (!channels_.serves(plan_.rank_of(op))) continue;
    record_of_[op] = static_cast<int32_t>(wiring_.records.size());
    wiring_.records.push_back({.op = static_cast<uint32_t>(op), .lane = static_cast<uint32_t>(plan_.op_lane[op])});
  }
}

void Wirer::count_ops() {
  for (size_t index = 0; index < plan_.lanes.size(); ++index) {
    const Lane& lane = plan_.lanes[index];
    if (lane.kind != LaneKind::COMPUTE && lane.kind != LaneKind::COLLECTIVE) continue;
    const bool compute = lane.kind == LaneKind::COMPUTE;
    Cursor& cursor = (compute ? wiring_.compute : wiring_.collective)[lane.rank];
    if (cursor.ops_per_step != 0) {
      throw PlanError("rank " + std::to_string(lane.rank) + " has two " + std::string(text_of(lane.kind)) + " lanes",
                      {.rank = lane.rank});
    }
    cursor.ops_per_step = plan_.lane_ops[index].size();
  }
}

Cursor& Wirer::cursor_of(int32_t op) {
  return (kind_of(op) == LaneKind::COMPUTE ? wiring_.compute : wiring_.collective)[plan_.rank_of(op)];
}

NvtxOp Wirer::nvtx_op(int32_t op) {
  if (nvtx_ == nullptr) return {};
  return nvtx_->op(plan_.text(op), plan_.ops[op].stage, plan_.ops[op].microbatch);
}

bool Wirer::has_ops_here(size_t lane, LaneKind kind) const {
  return plan_.lanes[lane].kind == kind && channels_.serves(plan_.lanes[lane].rank) && !plan_.lane_ops[lane].empty();
}

void Wirer::refuse(int32_t op, int32_t dependency, const char* why) const {
  throw PlanError(plan_.text(op) + " waits for " + plan_.text(dependency) + ": " + why,
                  {.rank = plan_.rank_of(op), .op = plan_.text(op)});
}

void Wirer::add_recv_lanes() {
  for (size_t index = 0; index < plan_.lanes.size(); ++index) {
    if (!has_ops_here(index, LaneKind::RECV)) continue;
    const Lane& lane = plan_.lanes[index];
    const auto lane_index = static_cast<int32_t>(wiring_.recv_lanes.size());
    std::vector<RecvOp> ops;
    for (const int32_t op : plan_.lane_ops[index]) {
      wiring_.places[op] = {.lane = lane_index, .position = static_cast<int32_t>(ops.size())};
      ops.push_back(recv_op(op));
    }
    RecvEnd& end = channels_.recv_end(channels_.topology().edge_of_lane[index]);
    end.delay(delays_.empty() ? LinkDelay{} : delays_[index]);
    wiring_.recv_lanes.push_back(std::make_unique<RecvLane>(lane.rank, lane.peer, std::move(ops), end));
    for (const int32_t op : plan_.lane_ops[index]) add_offers(op, wiring_.recv_lanes.back().get());
  }
}

RecvOp Wirer::recv_op(int32_t op) {
  return {.op = op,
          .slot = static_cast<uint32_t>(channels_.topology().edge_slot[plan_.op_slot[op]]),
          .dependencies = {},
          .record = record(op),
          .nvtx = nvtx_op(op)};
}

void Wirer::add_offers(int32_t op, RecvLane* lane) {
  for (const int32_t dependency : plan_.deps_of(op)) {
    if (kind_of(dependency) == LaneKind::RECV || kind_of(dependency) == LaneKind::COLLECTIVE)
      refuse(op, dependency, "a receive can only wait for compute ops and sends");
    add_once(offers_[dependency], lane);
  }
}

void Wirer::add_send_lanes() {
  for (size_t index = 0; index < plan_.lanes.size(); ++index) {
    if (!has_ops_here(index, LaneKind::SEND)) continue;
    const Lane& lane = plan_.lanes[index];
    const auto lane_index = static_cast<int32_t>(wiring_.send_lanes.size());
    std::vector<SendOp> ops;
    for (const int32_t op : plan_.lane_ops[index]) {
      wiring_.places[op] = {.lane = lane_index, .position = static_cast<int32_t>(ops.size())};
      ops.push_back(send_op(op, lane_index));
    }
    SendEnd& end = channels_.send_end(channels_.topology().edge_of_lane[index]);
    wiring_.send_lanes.push_back(
        std::make_unique<SendLane>(lane.rank, lane.peer, std::move(ops), end, channels_, timeout_ns_));
  }
}

SendOp Wirer::send_op(int32_t op, int32_t lane) {
  const int32_t rank = plan_.rank_of(op);
  if (plan_.deps_of(op).empty()) {
    throw PlanError(plan_.text(op) + " waits for no op that makes what it sends", {.rank = rank, .op = plan_.text(op)});
  }
  SendOp send{.op = op, .text = plan_.text(op), .frees = offers_[op], .record = record(op), .nvtx = nvtx_op(op)};
  for (const int32_t dependency : plan_.deps_of(op)) {
    if (kind_of(dependency) != LaneKind::COMPUTE) refuse(op, dependency, "a send can only wait for compute ops");
    send.dependencies.push_back(
        {.cursor = &wiring_.compute[rank], .position = static_cast<uint64_t>(plan_.lane_position[dependency])});
    add_once(feeds_[dependency], lane);
  }
  return send;
}

void Wirer::add_recv_dependencies() {
  for (const std::unique_ptr<RecvLane>& lane : wiring_.recv_lanes) {
    for (size_t position = 0; position < lane->ops().size(); ++position) {
      lane->set_dependencies(position, recv_dependencies(lane->ops()[position].op));
    }
  }
}

std::vector<Dependency> Wirer::recv_dependencies(int32_t op) const {
  std::vector<Dependency> dependencies;
  for (const int32_t dependency : plan_.deps_of(op)) {
    const bool is_send = kind_of(dependency) == LaneKind::SEND;
    const Cursor& cursor = is_send ? wiring_.send_lanes[wiring_.places[dependency].lane]->cursor()
                                   : wiring_.compute[plan_.rank_of(dependency)];
    dependencies.push_back({.cursor = &cursor, .position = static_cast<uint64_t>(plan_.lane_position[dependency])});
  }
  return dependencies;
}

void Wirer::add_program() {
  for (int32_t op = 0; op < plan_.num_ops(); ++op) {
    if (record_of_[op] < 0 || is_transfer(plan_.ops[op].kind)) continue;
    wiring_.places[op] = {.lane = -1, .position = static_cast<int32_t>(wiring_.program.size())};
    wiring_.program.push_back(compute_op(op));
    wiring_.program_ids.push_back(op);
  }
}

ComputeOp Wirer::compute_op(int32_t op) {
  ComputeOp compute{.op = op,
                    .cursor = &cursor_of(op),
                    .record = record(op),
                    .nvtx = nvtx_op(op),
                    .reads = {},
                    .frees = offers_[op],
                    .feeds = {}};
  for (const int32_t dependency : plan_.deps_of(op)) {
    if (kind_of(dependency) == LaneKind::SEND) refuse(op, dependency, "only a receive can wait for a send");
    if (kind_of(dependency) != LaneKind::RECV) continue;  // ran before, on the same thread
    const Place place = wiring_.places[dependency];
    compute.reads.emplace_back(wiring_.recv_lanes[place.lane].get(), place.position);
  }
  for (const int32_t lane : feeds_[op]) compute.feeds.push_back(wiring_.send_lanes[lane].get());
  return compute;
}

}  // namespace

Wiring wire(const Plan& plan, Channels& channels, int64_t timeout_ns, std::span<const LinkDelay> delays) {
  Wirer wirer(plan, channels, timeout_ns, delays);
  wirer.add_records();
  wirer.count_ops();
  wirer.add_recv_lanes();
  wirer.add_send_lanes();
  wirer.add_recv_dependencies();
  wirer.add_program();
  return wirer.take();
}

}  // namespace pipert
