// What a plan becomes where lanes are streams: every op of this process in the order in which it is enqueued, with the
// ops that its stream waits for and the slots that it frees.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/plan.h"
#include "trace/nvtx.h"
#include "transport/device/device_channels.h"

namespace pipert {

struct StreamOp {
  int32_t op = -1;
  LaneKind lane = LaneKind::COMPUTE;
  int32_t stream = -1;                   // -1: the caller's
  std::vector<int32_t> waits = {};       // entries of the program; what a stream has waited for before is left out
  std::vector<int32_t> offers = {};      // RECVs (entries) whose slots are free once this op is enqueued
  int32_t edge = -1;                     // of a transfer, as the two below
  int32_t offers_stream = -1;            // of a RECV
  uint32_t slot = 0;                     // its number on the edge
  std::vector<int32_t> free_after = {};  // of a RECV: entries that the slot is free after
  int32_t sent_before = 0;               // of a SEND: see sent_before()
  NvtxOp nvtx = {};
};

struct StreamProgram {
  std::vector<StreamOp> ops;           // in the global order
  std::vector<int32_t> entry_of;       // per op of the plan; -1: not of this process
  std::vector<int32_t> compute;        // entries that the calling thread runs, in order
  std::vector<int32_t> compute_ids;    // their ops
  std::vector<int32_t> free_at_start;  // RECVs (entries) whose slots are free when a step begins
  int32_t num_streams = 0;
};

// Throws PlanError for a plan that this backend cannot run.
StreamProgram stream_program(const Plan& plan, DeviceChannels& channels);

}  // namespace pipert
