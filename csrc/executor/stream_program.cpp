#include "executor/stream_program.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>

#include "core/error.h"
#include "plan/sent_before.h"

namespace pipert {
namespace {

class Programmer {
 public:
  Programmer(const Plan& plan, DeviceChannels& channels);

  // One per phase, in this order.
  void add_ops();
  void add_offers();
  void add_waits();
  void add_sent_before();

  StreamProgram take() { return std::move(program_); }

 private:
  StreamOp stream_op(int32_t op);
  void wait(int32_t stream, std::vector<int32_t>& list, std::span<const int32_t> dependencies);
  void check_send(const StreamOp& send) const;

  const Plan& plan_;
  DeviceChannels& channels_;
  std::vector<int32_t> stream_of_lane_;
  std::vector<int32_t> offers_stream_of_lane_;
  // Per (waiting stream, lane): the last position on the lane that the stream has waited for; lanes run in order.
  std::map<std::pair<int32_t, int32_t>, int32_t> waited_;
  NvtxDomain* nvtx_ = NvtxDomain::wanted();  // null: nobody wants to see the ops
  StreamProgram program_;
};

Programmer::Programmer(const Plan& plan, DeviceChannels& channels)
    : plan_(plan),
      channels_(channels),
      stream_of_lane_(plan.lanes.size(), -1),
      offers_stream_of_lane_(plan.lanes.size(), -1) {
  program_.entry_of.assign(plan.num_ops(), -1);
  for (size_t lane = 0; lane < plan.lanes.size(); ++lane) {
    const bool transfers = plan.lanes[lane].kind == LaneKind::SEND || plan.lanes[lane].kind == LaneKind::RECV;
    if (!transfers || !channels.serves(plan.lanes[lane].rank) || plan.lane_ops[lane].empty()) continue;
    stream_of_lane_[lane] = program_.num_streams++;
    if (plan.lanes[lane].kind == LaneKind::RECV) offers_stream_of_lane_[lane] = program_.num_streams++;
  }
}

void Programmer::add_ops() {
  for (int32_t op = 0; op < plan_.num_ops(); ++op) {
    if (!channels_.serves(plan_.rank_of(op))) continue;
    const auto entry = static_cast<int32_t>(program_.ops.size());
    program_.entry_of[op] = entry;
    program_.ops.push_back(stream_op(op));
    if (program_.ops.back().stream >= 0) continue;
    program_.compute.push_back(entry);
    program_.compute_ids.push_back(op);
  }
}

StreamOp Programmer::stream_op(int32_t op) {
  const int32_t lane = plan_.op_lane[op];
  StreamOp entry{.op = op, .lane = plan_.lanes[lane].kind, .stream = stream_of_lane_[lane]};
  if (nvtx_ != nullptr) entry.nvtx = nvtx_->op(plan_.text(op), plan_.ops[op].stage, plan_.ops[op].microbatch);
  if (entry.stream < 0) return entry;
  const int32_t recv = entry.lane == LaneKind::RECV ? op : plan_.partner_of(op);
  entry.edge = channels_.topology().edge_of_lane[lane];
  entry.slot = static_cast<uint32_t>(channels_.topology().edge_slot[plan_.op_slot[recv]]);
  entry.offers_stream = offers_stream_of_lane_[lane];
  return entry;
}

// A RECV's slot is free after the last of the ops that it waits for; all of them stand before it.
void Programmer::add_offers() {
  for (size_t entry = 0; entry < program_.ops.size(); ++entry) {
    const StreamOp& recv = program_.ops[entry];
    if (recv.lane != LaneKind::RECV || !channels_.recv_end(recv.edge).offers()) continue;
    const std::span<const int32_t> dependencies = plan_.deps_of(recv.op);
    const auto index = static_cast<int32_t>(entry);
    if (dependencies.empty()) {
      program_.free_at_start.push_back(index);
    } else {
      program_.ops[program_.entry_of[*std::ranges::max_element(dependencies)]].offers.push_back(index);
    }
  }
}

// In the order in which they are enqueued, because what a stream has waited for once is not waited for again.
void Programmer::add_waits() {
  for (StreamOp& entry : program_.ops) {
    if (entry.lane == LaneKind::SEND) check_send(entry);
    const bool offered = entry.lane == LaneKind::RECV && channels_.recv_end(entry.edge).offers();
    if (!offered) wait(entry.stream, entry.waits, plan_.deps_of(entry.op));
    for (const int32_t recv : entry.offers) {
      StreamOp& freed = program_.ops[recv];
      wait(freed.offers_stream, freed.free_after, plan_.deps_of(freed.op));
    }
  }
}

void Programmer::wait(int32_t stream, std::vector<int32_t>& list, std::span<const int32_t> dependencies) {
  for (const int32_t dependency : dependencies) {
    const int32_t entry = program_.entry_of[dependency];
    if (program_.ops[entry].stream == stream) continue;
    // What the calling thread runs is one stream, of all ranks.
    const bool computes = program_.ops[entry].stream < 0;
    const int32_t lane = computes ? -1 : plan_.op_lane[dependency];
    const int32_t position = computes ? entry : plan_.lane_position[dependency];
    const auto [last, is_new] = waited_.try_emplace({stream, lane}, position);
    if (!is_new && last->second >= position) continue;
    last->second = position;
    list.push_back(entry);
  }
}

void Programmer::check_send(const StreamOp& send) const {
  if (!plan_.deps_of(send.op).empty()) return;
  const ErrorContext context{.rank = plan_.rank_of(send.op), .op = plan_.text(send.op)};
  throw PlanError(context.op + " waits for no op that makes what it sends", context);
}

void Programmer::add_sent_before() {
  for (int32_t rank = 0; rank < plan_.num_ranks; ++rank) {
    if (!channels_.serves(rank)) continue;
    const std::vector<int32_t> counts = sent_before(plan_, rank);
    for (StreamOp& entry : program_.ops) {
      if (entry.lane == LaneKind::SEND && plan_.rank_of(entry.op) == rank) entry.sent_before = counts[entry.op];
    }
  }
}

}  // namespace

StreamProgram stream_program(const Plan& plan, DeviceChannels& channels) {
  Programmer programmer(plan, channels);
  programmer.add_ops();
  programmer.add_offers();
  programmer.add_waits();
  programmer.add_sent_before();
  return programmer.take();
}

}  // namespace pipert
