// What a plan becomes in a process: lanes and compute ops that know what they wait for and whom to tell.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lanes/cursor.h"
#include "lanes/recv_lane.h"
#include "lanes/send_lane.h"
#include "plan/plan.h"
#include "trace/nvtx.h"
#include "trace/record.h"
#include "transport/channels.h"

namespace pipert {

// An op that the calling thread runs: compute or collective.
struct ComputeOp {
  int32_t op = -1;
  Cursor* cursor = nullptr;
  TraceRecord* record = nullptr;
  NvtxOp nvtx = {};
  std::vector<std::pair<RecvLane*, uint64_t>> reads;  // messages, by their position on their lane
  std::vector<RecvLane*> frees;                       // where a slot may become free
  std::vector<SendLane*> feeds;                       // where a message may be ready to go
};

// Where an op of this process stands; -1 elsewhere.
struct Place {
  int32_t lane = -1;      // in recv_lanes or send_lanes
  int32_t position = -1;  // in its lane
};

// Its parts point at each other's elements: it can be moved into an empty one, but no vector may grow.
struct Wiring {
  std::vector<Place> places;         // per op of the plan
  std::vector<TraceRecord> records;  // per op of this process, in the global order
  std::vector<Cursor> compute;       // per rank of the plan
  std::vector<Cursor> collective;    // likewise
  std::vector<ComputeOp> program;    // the compute and collective ops of this process, in the global order
  std::vector<int32_t> program_ids;  // their ids
  std::vector<std::unique_ptr<RecvLane>> recv_lanes;
  std::vector<std::unique_ptr<SendLane>> send_lanes;  // last, so destroyed first: their threads use the above
};

// Wires what `channels` serves. The threads of the sending lanes run from here on, and sleep until the first step.
// `delays`: per lane, or none. Throws PlanError for dependencies that the host backend does not know, ConfigError for
// what PIPERT_NVTX cannot be.
Wiring wire(const Plan& plan, Channels& channels, int64_t timeout_ns, std::span<const LinkDelay> delays);

}  // namespace pipert
