// Pauses the compute host for the time of a wait.
#pragma once

#include "executor/compute_host.h"

namespace pipert {

class Paused {
 public:
  explicit Paused(ComputeHost& host) : host_(host) { host_.pause(); }
  ~Paused() {
    if (paused_) host_.resume();
  }
  Paused(const Paused&) = delete;
  Paused& operator=(const Paused&) = delete;
  void check_signals() {
    paused_ = false;
    host_.resume();
    host_.check_signals();
    host_.pause();
    paused_ = true;
  }

 private:
  ComputeHost& host_;
  bool paused_ = true;
};

}  // namespace pipert
