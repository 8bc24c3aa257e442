// Who runs the compute ops: the executor decides when, this decides what. Everything is called on the thread that
// called Executor::step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pipert {

class ComputeHost {
 public:
  virtual ~ComputeHost() = default;

  // Runs op `index` of Executor::compute_ops(). What it throws ends the step and goes to the
  // caller of Executor::step unchanged.
  virtual void run(size_t index) = 0;
  // What run() or check_signals() threw, in a few words, for the peers.
  virtual std::string what_was_thrown() { return "an exception"; }

  // Around a wait that may take long; in between, nothing of the host is called.
  virtual void pause() {}
  virtual void resume() {}
  // At least every 50 ms while waiting, after resume(). May throw, like run().
  virtual void check_signals() {}
};

}  // namespace pipert
